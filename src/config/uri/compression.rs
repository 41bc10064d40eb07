//! The options of a connection string about compression.

use crate::config::CompressorName;
use crate::config::compressors::CompressorNameError;

/// How messages are compressed towards upstream, where the server can do that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compression {
    /// Without duplicates; the first that the server knows is used. Empty: none.
    pub compressors: Vec<CompressorName>,
    /// How hard zlib tries, 0 to 9; `None` for its default.
    pub zlib_level: Option<u32>,
}

impl Compression {
    pub(super) fn take_compressors(&mut self, value: &str) -> Result<(), String> {
        // A comma may be written as it is or encoded; names are plain letters.
        for name in value.replace("%2C", ",").replace("%2c", ",").split(',') {
            let compressor = name.parse().map_err(|error: CompressorNameError| error.to_string())?;
            if !self.compressors.contains(&compressor) {
                self.compressors.push(compressor);
            }
        }
        Ok(())
    }

    pub(super) fn take_zlib_level(&mut self, value: &str) -> Result<(), String> {
        self.zlib_level = match value.parse() {
            Ok(-1) => None,
            Ok(level @ 0..=9) => u32::try_from(level).ok(),
            _ => return Err("expected -1 (the default) or 0 to 9".to_owned()),
        };
        Ok(())
    }

    pub(super) fn warning(&self) -> Option<String> {
        let in_vain = self.zlib_level.is_some() && !self.compressors.contains(&CompressorName::Zlib);
        in_vain.then(|| "zlibCompressionLevel is ignored: compressors does not name zlib".to_owned())
    }
}
