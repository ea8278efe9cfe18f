//! Removes debug information from an object.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;
use std::fs;
use std::path::Path;

/// Removes the sections of DWARF from the object at `path`: the linker makes BTF from them, and nobody
/// reads them later. They are most of the object, which is a part of the agent's binary and memory.
///
/// # Errors
/// Returns an error if the file can't be read or written, or is no ELF object.
pub fn strip(path: &Path) -> Result<()> {
    let built = fs::read(path)?;
    let mut object = Builder::read(&*built).context("reading the object")?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    object.delete_orphans();
    // LLVM has one table of strings for sections and symbols, the writer wants two.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped).context("writing the object")?;
    fs::write(path, stripped)?;
    Ok(())
}
