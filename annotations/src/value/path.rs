//! Volumes by name: the path where the container has them.

text! {
    /// An absolute path in its shortest form: no `.`, no `..`, no empty part, no slash at the end but
    /// that of the root.
    VolumePath: "^/([^/]+(/[^/]+)*)?$", at most 4095, is_normal,
    "an absolute path without \".\", \"..\", \"//\" and control characters, such as /data"
}

impl VolumePath {
    /// Whether this is `/`, where a machine's own disk is.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }
}

fn is_normal(text: &str) -> bool {
    let Some(below) = text.strip_prefix('/') else {
        return false;
    };
    let is_part =
        |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
    below.is_empty() || below.split('/').all(is_part)
}
