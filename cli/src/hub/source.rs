//! How a model that is elsewhere is written.

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A repository of the hub.
    Repository {
        /// `OWNER/REPO`.
        repository: String,
        /// Which of its models: a quantisation, or a file's name.
        tag: Option<String>,
    },
    /// A file behind an address; of a split model the first.
    Address(String),
}

/// Hosts of the hub, and of those that speak for it.
const HUB_PREFIXES: [&str; 6] =
    ["hf:", "hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/", "http://hf.co/"];

impl Source {
    /// Reads `hf:OWNER/REPO`, `hf:OWNER/REPO:Q4_K_M`, `hf.co/...` as Ollama writes it, or `https://...`; `None` for
    /// anything else, which is a path.
    pub fn parse(text: &str) -> Option<Self> {
        let in_hub = HUB_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(rest) = in_hub.filter(|rest| !rest.contains("/resolve/") && !rest.contains("/blob/")) {
            return Self::in_repository(rest.trim_end_matches('/'));
        }
        // What a browser shows of a file is a page about it; the file itself is one word away.
        let is_address = text.starts_with("https://") || text.starts_with("http://");
        is_address.then(|| Self::Address(text.replacen("/blob/", "/resolve/", 1)))
    }

    /// Whether a text is written as one, even if there can be none such: it is no path.
    pub fn is_meant(text: &str) -> bool {
        HUB_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) || Self::parse(text).is_some()
    }

    /// What is wrong with a name of the hub.
    pub fn misspelt(text: &str) -> String {
        format!("{text} is no repository of the hub: write hf:OWNER/REPO or hf:OWNER/REPO:Q4_K_M")
    }

    /// Reads `OWNER/REPO` or `OWNER/REPO:TAG`.
    pub fn in_repository(text: &str) -> Option<Self> {
        let (repository, tag) = match text.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag).filter(|tag| !tag.is_empty() && *tag != "latest")),
            None => (text, None),
        };
        let is_plain = |name: &str| {
            let is_known = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
            !name.is_empty() && name.chars().all(is_known) && !name.starts_with('.')
        };
        let (owner, name) = repository.split_once('/')?;
        let parts = is_plain(owner) && is_plain(name);
        parts.then(|| Self::Repository { repository: repository.to_owned(), tag: tag.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_source_and_what_a_path() {
        let repository = |tag: Option<&str>| {
            Some(Source::Repository { repository: "o/R.1-GGUF".to_owned(), tag: tag.map(str::to_owned) })
        };
        for text in ["hf:o/R.1-GGUF", "hf.co/o/R.1-GGUF", "https://huggingface.co/o/R.1-GGUF/", "hf:o/R.1-GGUF:latest"]
        {
            assert_eq!(Source::parse(text), repository(None), "{text}");
        }
        assert_eq!(Source::parse("hf:o/R.1-GGUF:Q4_K_M"), repository(Some("Q4_K_M")));
        let address = "https://huggingface.co/o/r/resolve/main/a.gguf";
        assert_eq!(Source::parse(address), Some(Source::Address(address.to_owned())));
        assert_eq!(Source::parse(&address.replace("resolve", "blob")), Some(Source::Address(address.to_owned())));
        for path in ["model.gguf", "hf/model.gguf", "/hf:o/r", "hf:only", "hf:../x", "hf:o/r/x", "o/r"] {
            assert_eq!(Source::parse(path), None, "{path}");
        }
        for (text, is_meant) in
            [("hf:only", true), ("hf:", true), ("https://x/a.gguf", true), ("o/r", false), ("hf", false)]
        {
            assert_eq!(Source::is_meant(text), is_meant, "{text}");
        }
    }
}
