//! The sample contents of `dozo up --demo`: about 100 MB of text, pictures, sound and binaries, made at the first
//! start. Neither clock nor random source is asked, so every start makes the same.

mod archive;
mod picture;
mod sound;
mod text;

use std::fs;
use std::io;
use std::path::Path;

use crate::files;

/// Keys of the sample contents, in order.
pub fn keys() -> Vec<String> {
    let mut keys: Vec<String> =
        ["README.md", "tables/stations.csv", "tables/rain.csv"].map(Into::into).into();
    keys.extend(text::poem_keys());
    keys.extend(picture::PICTURES.iter().map(|p| format!("pictures/{}.png", p.name)));
    keys.extend(sound::MELODIES.iter().map(|m| format!("sounds/{}.wav", m.name)));
    keys.extend(["data/archive-1.bin", "data/archive-2.bin"].map(String::from));
    keys.sort();
    keys
}

/// Makes the contents in `folder` unless it is there already: in a folder beside it, renamed when complete.
pub fn make(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = folder.with_extension("new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    for sub in ["poems", "tables", "pictures", "sounds", "data"] {
        fs::create_dir_all(unfinished.join(sub))?;
    }
    fs::write(unfinished.join("README.md"), text::README)?;
    fs::write(unfinished.join("tables/stations.csv"), text::stations())?;
    fs::write(unfinished.join("tables/rain.csv"), text::rain())?;
    for (key, poem) in text::poem_keys().iter().zip(text::poems()) {
        fs::write(unfinished.join(key), poem)?;
    }
    for picture in &picture::PICTURES {
        fs::write(unfinished.join(format!("pictures/{}.png", picture.name)), picture.render())?;
    }
    for melody in &sound::MELODIES {
        fs::write(unfinished.join(format!("sounds/{}.wav", melody.name)), melody.render())?;
    }
    archive::write(archive::Edition::First, &unfinished.join("data/archive-1.bin"))?;
    archive::write(archive::Edition::Second, &unfinished.join("data/archive-2.bin"))?;
    fs::rename(&unfinished, folder)?;
    files::sync_folder_of(folder)
}

/// Numbers that look random and are the same everywhere: the output of BLAKE3 for a label.
struct Numbers(blake3::OutputReader);

impl Numbers {
    fn of(label: &str) -> Self {
        Self(blake3::Hasher::new_derive_key("dozo demo content v1").update(label.as_bytes()).finalize_xof())
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    /// A number below `bound`, which is small against 2^32.
    fn below(&mut self, bound: u32) -> u32 {
        let mut bytes = [0u8; 4];
        self.fill(&mut bytes);
        u32::from_le_bytes(bytes) % bound
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u32) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_made_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("studio");
        make(&folder).unwrap();
        let mut found = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                let sub = entry.file_name().into_string().unwrap();
                for file in fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
                    found.push(format!("{sub}/{}", file.file_name().into_string().unwrap()));
                    total += file.metadata().unwrap().len();
                }
            } else {
                found.push(entry.file_name().into_string().unwrap());
                total += entry.metadata().unwrap().len();
            }
        }
        found.sort();
        assert_eq!(found, keys());
        assert!((90_000_000..115_000_000).contains(&total), "{total} bytes");

        let readme = folder.join("README.md");
        fs::write(&readme, "changed by its owner").unwrap();
        make(&folder).unwrap();
        assert_eq!(
            fs::read_to_string(readme).unwrap(),
            "changed by its owner",
            "a second start changes nothing"
        );
    }
}
