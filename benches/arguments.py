"""The command line that all benches share."""

import argparse
import os
import signal
import sys

import paired
import peers


def parse(doc, rounds, budget_min):
    """`rounds` and `budget_min` are what a full run takes by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="as made by scripts/make-big-image")
    parser.add_argument("--peers", default=os.path.join(peers.TOP, ".demo/peers"), help="as made by scripts/peers")
    parser.add_argument("--rounds", type=int, default=rounds, help="counted runs of each case")
    parser.add_argument("--times", type=int, default=1, help="repeat the whole; each time prints its bars")
    parser.add_argument("--budget", type=float, default=budget_min, metavar="MINUTES",
                        help=f"of each time, after which peers are left out [{budget_min}]")
    parser.add_argument("--on-disk", action="store_true", help="inputs and outputs below DIRECTORY, not in memory")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--smoke", action="store_true", help="prove that every row still works: one short round, any image")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root: to drop caches and mount the peers; what is measured runs as an ordinary user")
    # Ends by the exit handlers, so that mounts, servers and control groups go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.directory = os.path.abspath(args.directory)
    if args.smoke:
        args.rounds, args.times = 1, 1
        paired.drop_caches = lambda: None  # of the whole machine, which has better to do
    args.sid = peers.Sid(args.peers)
    if not args.sid.there() and not args.smoke:
        sys.exit(f"{args.peers} has no peers: run scripts/peers {args.peers}")
    return args


def times(args, once):
    """Runs `once(number)`, which gives its bars, as often as asked, and exits with the verdict."""
    met = True
    try:
        for number in range(args.times):
            if args.times > 1:
                print(f"## Time {number + 1} of {args.times}\n", flush=True)
            met &= once(number).print()
    except paired.Failed as failure:
        sys.exit(f"failed: {failure}")
    sys.exit(1 if args.strict and not met else 0)
