//! Compressors by name.

use std::fmt;
use std::str::FromStr;

/// A compressor, by its name in `hello` and in connection strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompressorName {
    /// `snappy`
    Snappy,
    /// `zlib`
    Zlib,
    /// `zstd`
    Zstd,
}

/// Why a text is no [`CompressorName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressorNameError {
    /// One that does nothing.
    #[error("found \"noop\", which does not compress and which no driver sends: leave it out")]
    Noop,
    /// Anything else.
    #[error("found {0:?}, expected \"snappy\", \"zlib\" or \"zstd\"")]
    Unknown(String),
}

impl CompressorName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Snappy, Self::Zlib, Self::Zstd];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snappy => "snappy",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for CompressorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CompressorName {
    type Err = CompressorNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::ALL.into_iter().find(|compressor| compressor.name() == text) {
            Some(compressor) => Ok(compressor),
            None if text == "noop" => Err(CompressorNameError::Noop),
            None => Err(CompressorNameError::Unknown(text.chars().take(60).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reads_as_it_prints_and_noop_is_told_apart() {
        for compressor in CompressorName::ALL {
            assert_eq!(compressor.to_string().parse(), Ok(compressor));
        }
        let told = |text: &str| text.parse::<CompressorName>().unwrap_err().to_string();
        assert!(told("noop").contains("leave it out"));
        assert_eq!(told("Zlib"), "found \"Zlib\", expected \"snappy\", \"zlib\" or \"zstd\"");
        assert!(told(&"x".repeat(1_000)).len() < 150);
    }
}
