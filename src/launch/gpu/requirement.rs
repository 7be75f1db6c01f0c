//! `NVIDIA_REQUIRE_*`: what an image says of the driver that it needs.
//!
//! Source: the container toolkit's grammar. Words divided by spaces are alternatives, terms divided by commas all hold:
//! `cuda>=12.4 brand=tesla,driver>=470,driver<471`.

use crate::image::config::ImageConfig;

/// Driver branches and the CUDA that each brought.
const CUDA_OF_BRANCH: [(u32, (u32, u32)); 24] = [
    (384, (9, 0)),
    (390, (9, 1)),
    (396, (9, 2)),
    (410, (10, 0)),
    (418, (10, 1)),
    (440, (10, 2)),
    (450, (11, 0)),
    (455, (11, 1)),
    (460, (11, 2)),
    (465, (11, 3)),
    (470, (11, 4)),
    (495, (11, 5)),
    (510, (11, 6)),
    (515, (11, 7)),
    (520, (11, 8)),
    (525, (12, 0)),
    (530, (12, 1)),
    (535, (12, 2)),
    (545, (12, 3)),
    (550, (12, 4)),
    (555, (12, 5)),
    (560, (12, 6)),
    (570, (12, 8)),
    (580, (13, 0)),
];

/// The CUDA that a driver of this version can run; none for one that is older than the table.
pub fn cuda_of_driver(version: &str) -> Option<(u32, u32)> {
    let branch: u32 = version.split('.').next()?.parse().ok()?;
    CUDA_OF_BRANCH.iter().rev().find(|(known, _)| *known <= branch).map(|(_, cuda)| *cuda)
}

/// The driver as requirements see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// `12.4`
    pub cuda: Option<String>,
    /// `550.54.14`
    pub driver: Option<String>,
}

/// The requirements of an image that this driver does not meet, as the image writes them.
pub fn unmet(config: &ImageConfig, properties: &Properties) -> Vec<String> {
    let value =
        |name: &str| config.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    if value("NVIDIA_DISABLE_REQUIRE").is_some_and(|value| matches!(value, "1" | "true" | "True" | "TRUE")) {
        return Vec::new();
    }
    let named = config.env.iter().filter_map(|entry| entry.split_once('='));
    let named = named.filter(|(name, _)| name.starts_with("NVIDIA_REQUIRE_"));
    let mut required: Vec<String> = named.map(|(_, value)| value.to_owned()).collect();
    // Images from before there were such variables.
    if let (Some(version), None) = (value("CUDA_VERSION"), value("NVIDIA_REQUIRE_CUDA")) {
        let numbers: Vec<&str> = version.split('.').take(2).collect();
        required.push(format!("cuda>={}", numbers.join(".")));
    }
    required.into_iter().filter(|text| !is_met(text, properties)).collect()
}

/// Whether one of the alternatives holds; an empty text asks for nothing.
fn is_met(text: &str, properties: &Properties) -> bool {
    let mut alternatives = text.split_whitespace().peekable();
    alternatives.peek().is_none()
        || alternatives.any(|all| all.split(',').all(|term| holds(term, properties).unwrap_or(true)))
}

/// Whether a term holds; none for a property that is not known or a term that is none.
fn holds(term: &str, properties: &Properties) -> Option<bool> {
    let at = term.find(['=', '!', '<', '>'])?;
    let (name, rest) = term.split_at(at);
    let operators = ["!=", "<=", ">=", "=", "<", ">"];
    let operator = operators.into_iter().find(|operator| rest.starts_with(operator))?;
    let wanted = rest.strip_prefix(operator)?;
    let have = match name {
        "cuda" => properties.cuda.as_deref()?,
        "driver" => properties.driver.as_deref()?,
        // The compute capability and the brand are told by the driver's library only.
        _ => return None,
    };
    let order = numbers(have).cmp(&numbers(wanted));
    Some(match operator {
        "!=" => order.is_ne(),
        "<=" => order.is_le(),
        ">=" => order.is_ge(),
        "=" => order.is_eq(),
        "<" => order.is_lt(),
        _ => order.is_gt(),
    })
}

/// A version's numbers, without zeros at the end: `12.0` is `12`.
fn numbers(version: &str) -> Vec<u64> {
    let mut numbers: Vec<u64> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver() -> Properties {
        Properties { cuda: Some("12.4".to_owned()), driver: Some("550.54.14".to_owned()) }
    }

    #[test]
    fn terms() {
        for (text, expected) in [
            ("cuda>=12.4", true),
            ("cuda>=12.5", false),
            ("cuda>12.4", false),
            ("cuda<13", true),
            ("cuda=12.4.0", true),
            ("cuda!=12.4", false),
            ("cuda>=9.0", true),
            ("driver>=470,driver<471", false),
            ("cuda>=12.6 driver>=550,driver<551", true),
            ("cuda>=12.6 brand=tesla,driver>=470,driver<471", false),
            ("brand=tesla", true),
            ("arch>=9.0", true),
            ("nosuch>1", true),
            ("nonsense", true),
            ("", true),
            ("  ", true),
        ] {
            assert_eq!(is_met(text, &driver()), expected, "{text}");
        }
    }

    #[test]
    fn images() {
        for (env, expected) in [
            (&[][..], 0),
            (&["NVIDIA_REQUIRE_CUDA=cuda>=12.8"], 1),
            (&["NVIDIA_REQUIRE_CUDA=cuda>=12.8", "NVIDIA_DISABLE_REQUIRE=1"], 0),
            (&["NVIDIA_REQUIRE_CUDA=cuda>=12.8", "NVIDIA_REQUIRE_DRIVER=driver>=600"], 2),
            (&["CUDA_VERSION=12.8.1"], 1),
            (&["CUDA_VERSION=12.4.99"], 0),
            (&["CUDA_VERSION=12.8.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"], 0),
        ] {
            let config =
                ImageConfig { env: env.iter().map(|s| (*s).to_owned()).collect(), ..ImageConfig::default() };
            assert_eq!(unmet(&config, &driver()).len(), expected, "{env:?}");
        }
    }

    #[test]
    fn branches() {
        for (version, expected) in [
            ("535.104.05", Some((12, 2))),
            ("550.54", Some((12, 4))),
            ("565.1", Some((12, 6))),
            ("590.1", Some((13, 0))),
            ("100.1", None),
            ("x", None),
        ] {
            assert_eq!(cuda_of_driver(version), expected, "{version}");
        }
    }
}
