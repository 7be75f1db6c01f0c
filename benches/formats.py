"""The rows of benches/read on images that mksquashfs made with other codecs and block sizes: `benches/read --formats`.

One tree, packed anew for each codec with blocks of 128 KiB and of 1 MiB, is served by everybody. Images lie in memory.
"""

import os
import shutil

import paired
import peers

CODECS = {
    "gzip": (),
    "lz4": (),
    "xz": (),
    "zstd": ("-Xcompression-level", "3"),
}
BLOCKS = "128K", "1M"
KINDS = [(codec, block) for codec in CODECS for block in BLOCKS]
SMOKE_KINDS = [("gzip", "1M"), ("xz", "128K")]
FILES_MIB, BIG_MIB, READS = 96, 128, 500
ROWS = [  # what, how, and whether it must be twice as fast as squashfuse_ll
    ("find -ls of everything", "walk {root}/", True),
    ("all files, 1 reader", "read {root}/ {bench}/list 1", False),
    ("all files, 2 readers", "read {root}/ {bench}/list 2", True),
    (f"one file of {BIG_MIB} MiB", "file {root}/big", True),
    (f"{READS} random reads of 4 KiB", f"random {{root}}/big 4096 {READS} 1", False),
]


def kind(base):
    """The class `Read` of benches/read with these images instead of its own."""

    class Formats(base):
        def prepare(self, stack):
            self.images, self.large = {}, None
            tree = self.tree()
            for codec, block in SMOKE_KINDS if self.args.smoke else KINDS:
                self.pack(stack, tree, f"{codec}-{block}", "-comp", codec, "-b", block, *CODECS[codec])
            shutil.rmtree(tree)

        def tree(self):
            """So many MiB of the image's files, and one big file of its archive."""
            files_mib, big_mib = (4, 4) if self.args.smoke else (FILES_MIB, BIG_MIB)
            whole, tree = f"{self.work}/whole.sqsh", f"{self.work}/tree"
            paired.root(self.hpcrun, "-q", "convert", f"oci:{self.args.directory}/oci:latest", whole)
            paired.root("unsquashfs", "-quiet", "-no-progress", "-dest", tree, whole)
            os.unlink(whole)
            left, lines = files_mib << 20, []
            for folder, _, names in os.walk(tree, topdown=False):
                for name in sorted(names):
                    path = os.path.join(folder, name)
                    if os.path.islink(path) or not os.path.isfile(path):
                        continue
                    left -= os.lstat(path).st_size
                    if left < 0 and os.path.basename(path) != "busybox":
                        os.unlink(path)
                    elif os.lstat(path).st_mode & 0o004 and "\n" not in path:
                        lines.append(os.path.relpath(path, tree) + "\n")
                if left < 0 and not os.listdir(folder) and folder.startswith(f"{tree}/usr/"):
                    os.rmdir(folder)
            with open(f"{self.bench}/list", "w") as out:
                out.writelines(lines)
            with open(f"{self.args.directory}/image.tar", "rb") as source, open(f"{tree}/big", "wb") as out:
                source.seek(min(200 << 20, os.fstat(source.fileno()).st_size // 2))
                out.write(source.read(big_mib << 20))
            return tree

        def pack(self, stack, tree, name, *options):
            image, place = f"{self.work}/{name}.sqsh", f"{self.work}/{name}"
            paired.root("mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", *options)
            os.chmod(image, 0o644)
            os.mkdir(place)
            mounts = [
                peers.kernel_squashfs(image, place, self.host),
                peers.squashfuse("squashfuse_ll", ["squashfuse_ll"], image, place, self.host),
            ]
            if self.args.sid.there():
                newest = self.args.sid.outside("squashfuse_ll")
                mounts.append(peers.squashfuse("squashfuse_ll, newest", newest, image, place, self.host))
            for mount in mounts:
                stack.callback(mount.down)
            self.images[name], self.mounts[name] = image, mounts

    return Formats


def rows(row, smoke):
    """Cold rows for each image; `row` is the class of benches/read."""
    return [
        row(f"{codec}-{block}: {what}", f"{codec}-{block}", action, passes=1, floor=1 / 1.05, twice=twice)
        for codec, block in (SMOKE_KINDS if smoke else KINDS)
        for what, action, twice in ROWS
    ]
