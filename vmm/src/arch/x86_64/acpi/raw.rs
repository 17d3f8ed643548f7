//! Pieces of AML that are put together before they are placed.

use acpi_tables::{Aml, AmlSink};

/// Bytes of AML that are ready.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Raw {
    pub(super) fn of(part: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        part.to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
