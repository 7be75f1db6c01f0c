//! `[images]`

use std::path::PathBuf;

use toml::de::DeValue;

use super::paths::{plain, read_paths};
use crate::image::digest::Digest;
use crate::policy::file::{Document, Located, Section, Value};
use crate::policy::rules::images::{FORMAT_WORDS, Format, Owner};
use crate::policy::rules::{Images, Listed, MirrorRule, RegistryRule, VERIFY_WORDS};

pub(super) fn read_images(mut section: Section<'_, '_>) -> Images {
    let images = Images {
        directories: read_paths(&mut section, "directories"),
        owners: read_owners(&mut section),
        formats: read_formats(&mut section),
        registries: read_registries(&mut section, "registries"),
        deny_registries: read_registries(&mut section, "deny_registries")
            .map(|listed| listed.rules)
            .unwrap_or_default(),
        mirrors: read_mirrors(&mut section),
        require_signature: section.boolean("require_signature"),
        signers: read_signers(&mut section),
        deny_digests: read_digests(&mut section),
        verify: section.choice("verify", &VERIFY_WORDS),
    };
    note_denied_and_allowed(section.document(), &images);
    section.finish();
    images
}

fn read_signers(section: &mut Section<'_, '_>) -> Option<Located<PathBuf>> {
    let document = section.document();
    let text = section.string("signers")?;
    plain(document, &text, "images.signers").map(|value| Located { value, at: text.at })
}

/// What is denied whole can be allowed nowhere.
fn note_denied_and_allowed(document: &Document<'_>, images: &Images) {
    for rule in images.registries.iter().flat_map(|listed| &listed.rules) {
        let same = |denied: &&RegistryRule| denied.host == rule.host && denied.repository == rule.repository;
        if let Some(denied) = images.deny_registries.iter().find(same) {
            let what =
                format!("{} is allowed here and denied at {}", rule.host, document.place(denied.at, rule.at));
            document.note_at(rule.at, what, None);
        }
    }
}

fn read_owners(section: &mut Section<'_, '_>) -> Option<Listed<Located<Owner>>> {
    let document = section.document();
    let list = section.array("owners")?;
    let mut rules: Vec<Located<Owner>> = Vec::new();
    for value in list.value {
        let at = document.at(value);
        let Some(owner) = owner(value) else {
            let hint = Some("write \"root\", \"self\", a user's name or a user's number".to_owned());
            document.note_at(at, "an element of images.owners is no user", hint);
            continue;
        };
        match rules.iter().find(|earlier| earlier.value == owner) {
            Some(earlier) => {
                let what =
                    format!("this owner stands in images.owners already, {}", document.place(earlier.at, at));
                document.note_at(at, what, None);
            }
            None => rules.push(Located { value: owner, at }),
        }
    }
    Some(Listed { rules, at: list.at })
}

fn owner(value: Value<'_, '_>) -> Option<Owner> {
    match value.get() {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok().map(Owner::Uid),
        DeValue::String(text) => match text.as_ref() {
            "root" => Some(Owner::Root),
            "self" => Some(Owner::Myself),
            name => is_user_name(name).then(|| Owner::Name(name.to_owned())),
        },
        _ => None,
    }
}

/// What a user database may hold between two colons; a number is written without quotes.
fn is_user_name(name: &str) -> bool {
    name.starts_with(|c: char| !c.is_ascii_digit() && c != '-')
        && !name.contains([':', '/', ',', '\\'])
        && name.chars().all(|c| !c.is_control() && !c.is_whitespace())
}

fn read_formats(section: &mut Section<'_, '_>) -> Option<Listed<Located<Format>>> {
    let document = section.document();
    let list = section.strings("formats")?;
    let format = |text: &Located<String>| document.word("images.formats", text, &FORMAT_WORDS);
    Some(Listed { rules: list.value.iter().filter_map(format).collect(), at: list.at })
}

fn read_digests(section: &mut Section<'_, '_>) -> Vec<Located<Digest>> {
    let document = section.document();
    let texts = section.strings("deny_digests").map(|list| list.value).unwrap_or_default();
    let mut digests = Vec::new();
    for text in texts {
        match Digest::parse(&text.value) {
            Ok(value) => digests.push(Located { value, at: text.at }),
            Err(error) => {
                let hint = Some("write sha256: and 64 hexadecimal digits in lower case".to_owned());
                document.note_at(text.at, format!("images.deny_digests: {error}"), hint);
            }
        }
    }
    digests
}

/// `"registry.example" = ["mirror.example/copy"]`
fn read_mirrors(section: &mut Section<'_, '_>) -> Vec<MirrorRule> {
    let document = section.document();
    let mut rules = Vec::new();
    for (name, list) in section.lists_table("mirrors") {
        let Some(registry) = read_registry(document, &name) else {
            continue;
        };
        let mirrors: Vec<RegistryRule> =
            list.iter().filter_map(|text| read_registry(document, text)).collect();
        if let Some(wild) = mirrors.iter().chain([&registry]).find(|rule| rule.host.starts_with("*.")) {
            document.note_at(wild.at, format!("{} cannot name a mirror or what it mirrors", wild.host), None);
        } else if mirrors.is_empty() && list.is_empty() {
            document.note_at(registry.at, format!("{} without a mirror", name.value), None);
        } else {
            rules.push(MirrorRule { registry, mirrors });
        }
    }
    rules
}

fn read_registries(section: &mut Section<'_, '_>, key: &'static str) -> Option<Listed<RegistryRule>> {
    let document = section.document();
    let list = section.strings(key)?;
    let rules = list.value.iter().filter_map(|text| read_registry(document, text)).collect();
    Some(Listed { rules, at: list.at })
}

fn read_registry(document: &Document<'_>, text: &Located<String>) -> Option<RegistryRule> {
    let (host, repository) = text.value.split_once('/').unwrap_or((&text.value, ""));
    let plain = host.strip_prefix("*.").unwrap_or(host);
    let (name, port) = plain.rsplit_once(':').unwrap_or((plain, "1"));
    let host_ok = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        })
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    let repository = repository.trim_end_matches('/');
    let repository_ok = repository.is_empty()
        || repository.split('/').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        });
    if !(host_ok && repository_ok) {
        let what = format!("{:?} is no registry", text.value);
        let hint = "write HOST[:PORT][/REPOSITORY], in lower case; '*.' may begin the host".to_owned();
        document.note_at(text.at, what, Some(hint));
        return None;
    }
    Some(RegistryRule { host: host.to_owned(), repository: repository.to_owned(), at: text.at })
}
