//! What servers say in the body of a refusal, in the several forms that there are.

use serde_json::Value;

use super::error::printable;
use super::http::Answer;

const MAX_ERROR_BYTES: u64 = 64 << 10;

/// What can be told from the body of a refusal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// The server's words, printable, one line; may be empty.
    pub(super) message: String,
    /// It says that access is refused, whatever the status.
    pub(super) refuses_access: bool,
}

impl ErrorBody {
    /// Reads the body; one that cannot be read or understood says nothing.
    pub(super) fn read(answer: Answer) -> ErrorBody {
        answer
            .read_small(MAX_ERROR_BYTES, "an error")
            .map(|bytes| ErrorBody::parse(&bytes))
            .unwrap_or_default()
    }

    /// Registries send `{"errors":[{"code":...,"message":...}]}`, OAuth servers `{"error":...,"error_description":...}`,
    /// Docker Hub's `{"details":...}`.
    fn parse(bytes: &[u8]) -> ErrorBody {
        let document: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        let first = document.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&document);
        let text = |key: &str| first.get(key).and_then(Value::as_str).unwrap_or_default();
        let code = text("code");
        let message = ["message", "error_description", "details", "code", "error"].map(text);
        let message = message.into_iter().map(printable).find(|text| !text.is_empty());
        ErrorBody {
            message: message.unwrap_or_default(),
            refuses_access: ["UNAUTHORIZED", "DENIED"].iter().any(|known| code.eq_ignore_ascii_case(known)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies() {
        for (body, message, refuses_access) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
                "manifest unknown",
                false,
            ),
            (r#"{"errors":[{"code":"denied"}]}"#, "denied", true),
            (r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#, "who?", true),
            (r#"{"errors":[{"message":"a\nb\u001b[31m"}]}"#, "a b [31m", false),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password", false),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, "expired", false),
            (r#"{"error":"invalid_grant"}"#, "invalid_grant", false),
            (r#"{"message":"too many"}"#, "too many", false),
            (r#"{"errors":[]}"#, "", false),
            (r#"{"errors":"x"}"#, "", false),
            (r#"{"errors":[{"message":7}]}"#, "", false),
            ("[1]", "", false),
            ("<html>", "", false),
            ("", "", false),
        ] {
            let expected = ErrorBody { message: message.to_owned(), refuses_access };
            assert_eq!(ErrorBody::parse(body.as_bytes()), expected, "{body}");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert!(ErrorBody::parse(long.as_bytes()).message.len() < 400);
    }
}
