//! Writes what is made from the catalogue into the folder of this crate: `json/`, `SUBJECTS.md`,
//! `asyncapi.json`. What is no longer made is removed.

use schemas::catalog::render;
use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = render::files();
    fs::create_dir_all(root.join("json"))?;
    for entry in fs::read_dir(root.join("json"))? {
        let entry = entry?;
        let path = format!("json/{}", entry.file_name().to_string_lossy());
        if !files.contains_key(&path) {
            fs::remove_file(entry.path())?;
        }
    }
    for (path, text) in files {
        fs::write(root.join(path), text)?;
    }
    Ok(())
}
