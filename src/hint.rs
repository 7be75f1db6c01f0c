//! What to do next: the knowledge of how to go on lives beside the error that needs it.

/// An error that can tell its reader how to go on.
pub trait Hint {
    /// Lines for the user, each shown as `hint: ...` under the error. Lower case, no full stop.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}
