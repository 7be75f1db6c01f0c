//! `[log]`: what the site learns of launches.

use crate::policy::file::Located;
use crate::policy::template::Template;

/// `[log]`
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Where a line for each launch goes; none means nowhere.
    pub launches: Option<Located<LogLaunches>>,
    /// The file of [`LogLaunches::File`], with `$USER`, `$JOB`, `$HOSTNAME` and the like.
    pub file: Option<Located<Template>>,
    /// The facility of [`LogLaunches::Syslog`], in [`FACILITY_WORDS`]'s numbers; none means user.
    pub facility: Option<Located<u8>>,
    /// How a line is written; none means JSON.
    pub format: Option<Located<LogFormat>>,
}

/// Where a line for each launch goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogLaunches {
    /// Nowhere.
    #[default]
    None,
    /// To the system's logger.
    Syslog,
    /// To a file.
    File,
}

/// The words for [`LogLaunches`].
pub const LOG_LAUNCHES_WORDS: [(&str, LogLaunches); 3] =
    [("none", LogLaunches::None), ("syslog", LogLaunches::Syslog), ("file", LogLaunches::File)];

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// For people.
    Text,
}

/// The words for [`LogFormat`].
pub const LOG_FORMAT_WORDS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

/// The facilities of syslog(3) that an ordinary user's program may log to, with their numbers.
pub const FACILITY_WORDS: [(&str, u8); 11] = [
    ("user", 1),
    ("daemon", 3),
    ("auth", 4),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// The facility where the site does not name one: user.
pub const DEFAULT_FACILITY: u8 = 1;
