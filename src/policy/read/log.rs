//! `[log]`

use super::paths::absolute;
use crate::policy::file::{Located, Section};
use crate::policy::rules::Log;
use crate::policy::rules::log::{FACILITY_WORDS, LOG_FORMAT_WORDS, LOG_LAUNCHES_WORDS, LogLaunches};

pub(super) fn read_log(mut section: Section<'_, '_>) -> Log {
    let launches = section.choice("launches", &LOG_LAUNCHES_WORDS);
    let named = section.string("file");
    let document = section.document();
    let is_to_file = |launches: &Located<LogLaunches>| launches.value == LogLaunches::File;
    match (launches.as_ref().filter(|launches| is_to_file(launches)), &named) {
        (Some(launches), None) => {
            document.note_at(launches.at, "log.launches is \"file\" and log.file names none", None);
        }
        (None, Some(file)) => {
            let hint = Some("launches = \"file\" writes to it".to_owned());
            document.note_at(file.at, "log.file means nothing while log.launches is not \"file\"", hint);
        }
        _ => {}
    }
    let file =
        named.and_then(|text| Some(Located { value: absolute(document, &text, "log.file")?, at: text.at }));
    let log = Log {
        launches,
        file,
        facility: section.choice("facility", &FACILITY_WORDS),
        format: section.choice("format", &LOG_FORMAT_WORDS),
    };
    section.finish();
    log
}
