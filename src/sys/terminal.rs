//! Questions to the person at the terminal: wrappers for `/dev/tty`, `tcsetattr(3)`, `signalfd(2)`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::Error;

/// The longest answer, bytes; what the terminal holds of a line.
const MAX_ANSWER: usize = 4096;

/// The signals that end or stop a program from its keyboard or from a batch system.
const SIGNALS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP];

/// The terminal of this session.
#[derive(Debug)]
pub struct Terminal(File);

/// Whether an answer is seen while it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// It is.
    Shown,
    /// It is a secret.
    Hidden,
}

impl Terminal {
    /// The terminal that controls this process; none in a batch job.
    pub fn open() -> Option<Terminal> {
        File::options().read(true).write(true).open("/dev/tty").ok().map(Terminal)
    }

    /// Asks `question` and gives the line typed, without its end; none for the end of input.
    ///
    /// The terminal is as before whatever happens: signals wait until it is, and then do what they always do. Ctrl-Z does
    /// nothing meanwhile, as the shell would be left without echo.
    pub fn ask(&mut self, question: &str, echo: Echo) -> Result<Option<Vec<u8>>, Error> {
        let held = HeldSignals::new()?;
        let answer = {
            let _hidden = match echo {
                Echo::Hidden => Some(HiddenEcho::new(self.0.as_fd())?),
                Echo::Shown => None,
            };
            write(&self.0, question)
                .and_then(|()| read_line(self.0.as_fd(), &held.arrived))
                .inspect(|_| drop(write(&self.0, if echo == Echo::Hidden { "\n" } else { "" })))
        };
        match answer? {
            Line::Typed(line) => Ok(Some(line)),
            Line::End => Ok(None),
            Line::Signal(signal) => {
                drop(held);
                raise(signal).map_err(|errno| Error::new(format!("raise({signal})"), errno))?;
                // Only an ignored signal gets here.
                Ok(None)
            }
        }
    }
}

fn write(mut terminal: &File, text: &str) -> Result<(), Error> {
    terminal.write_all(text.as_bytes()).map_err(|error| Error::from_io("write(\"/dev/tty\")", &error))
}

enum Line {
    Typed(Vec<u8>),
    End,
    Signal(Signal),
}

/// Reads until the end of a line or a signal, whichever comes first. The terminal hands out whole lines.
fn read_line(terminal: BorrowedFd<'_>, signals: &SignalFd) -> Result<Line, Error> {
    let mut line = Vec::new();
    loop {
        let mut ready =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(terminal, PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.map_err(|errno| Error::new("poll(\"/dev/tty\", signals)", errno))?,
        };
        if let Some(signal) = arrived(signals)? {
            match signal {
                Signal::SIGTSTP => continue,
                signal => return Ok(Line::Signal(signal)),
            }
        }
        let [_, typed] = ready;
        if typed.any() != Some(true) {
            continue;
        }
        let mut buffer = [0; MAX_ANSWER];
        let count = match nix::unistd::read(terminal, &mut buffer) {
            Err(Errno::EINTR) => continue,
            // The terminal has hung up.
            Err(Errno::EIO) => 0,
            result => result.map_err(|errno| Error::new("read(\"/dev/tty\")", errno))?,
        };
        line.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(Line::Typed(line));
        }
        if count == 0 || line.len() >= MAX_ANSWER {
            return Ok(if line.is_empty() { Line::End } else { Line::Typed(line) });
        }
    }
}

/// The next signal, if one has come.
fn arrived(signals: &SignalFd) -> Result<Option<Signal>, Error> {
    let failed = |errno| Error::new("read(signalfd)", errno);
    let Some(info) = signals.read_signal().map_err(failed)? else { return Ok(None) };
    let number = i32::try_from(info.ssi_signo).map_err(|_| failed(Errno::EINVAL))?;
    Signal::try_from(number).map(Some).map_err(failed)
}

/// The signals wait for this thread while it lives. Whoever asks is the only thread.
struct HeldSignals {
    arrived: SignalFd,
    before: SigSet,
}

impl HeldSignals {
    fn new() -> Result<HeldSignals, Error> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        let before = signals
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(|errno| Error::new("sigprocmask(BLOCK)", errno))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        match SignalFd::with_flags(&signals, flags) {
            Ok(arrived) => Ok(HeldSignals { arrived, before }),
            Err(errno) => {
                let _ = before.thread_set_mask();
                Err(Error::new("signalfd()", errno))
            }
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // Cannot fail: the set was the kernel's own.
        let _ = self.before.thread_set_mask();
    }
}

/// The terminal without echo while it lives.
struct HiddenEcho<'t> {
    terminal: BorrowedFd<'t>,
    before: Termios,
}

impl HiddenEcho<'_> {
    fn new(terminal: BorrowedFd<'_>) -> Result<HiddenEcho<'_>, Error> {
        let before = tcgetattr(terminal).map_err(|errno| Error::new("tcgetattr(\"/dev/tty\")", errno))?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL);
        // Line by line, whatever was set before, so that a mistake can be corrected.
        hidden.local_flags.insert(LocalFlags::ICANON | LocalFlags::ISIG);
        // FLUSH: what was typed before the question is no answer.
        tcsetattr(terminal, SetArg::TCSAFLUSH, &hidden)
            .map_err(|errno| Error::new("tcsetattr(\"/dev/tty\", FLUSH, no echo)", errno))?;
        Ok(HiddenEcho { terminal, before })
    }
}

impl Drop for HiddenEcho<'_> {
    fn drop(&mut self) {
        // A terminal that has hung up needs none of this.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

/// Whether a person may be asked: standard input is a terminal.
pub fn is_interactive() -> bool {
    io::IsTerminal::is_terminal(&io::stdin())
}
