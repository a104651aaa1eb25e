//! From paths to modules: what a path means in the module that it stands in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use crate::check::Arrow;
use crate::scan::{Import, Path, Scanned, scan};

/// The source of a crate.
#[derive(Debug, Default)]
pub struct Crate {
    /// As paths name it: `varta_core`.
    name: String,
    files: Vec<(PathBuf, Scanned)>,
    modules: BTreeSet<Vec<String>>,
    /// The file of each module.
    homes: BTreeMap<Vec<String>, PathBuf>,
    imports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl Crate {
    /// Reads a crate below the directory that has its `src`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is no Rust.
    pub fn read(name: &str, directory: &FilePath) -> io::Result<Self> {
        let source = directory.join("src");
        let mut found = Vec::new();
        collect(&source, &mut found)?;
        found.sort();
        let mut files = Vec::new();
        for path in found {
            let text = fs::read_to_string(&path)?;
            let below = path.strip_prefix(&source).unwrap_or(&path).to_owned();
            files.push((path, below, text));
        }
        let files = files.iter();
        let files = files.map(|(path, below, text)| (path.clone(), below.as_path(), text.as_str()));
        Self::of_files(name, files).map_err(io::Error::other)
    }

    /// A crate from texts: each with its path below `src`.
    ///
    /// # Errors
    ///
    /// A text that is no Rust.
    pub fn of_texts(name: &str, texts: &[(&str, &str)]) -> Result<Self, String> {
        let texts = texts.iter();
        let files = texts.map(|(path, text)| (PathBuf::from(path), FilePath::new(*path), *text));
        Self::of_files(name, files)
    }

    fn of_files<'a>(
        name: &str,
        files: impl Iterator<Item = (PathBuf, &'a FilePath, &'a str)>,
    ) -> Result<Self, String> {
        let mut all = Self {
            name: name.to_owned(),
            modules: BTreeSet::from([Vec::new()]),
            ..Self::default()
        };
        for (path, below, text) in files {
            let module = module_of(below);
            let scanned =
                scan(text, &module).map_err(|error| format!("{}: {error}", path.display()))?;
            all.modules.extend(scanned.modules.iter().cloned());
            all.homes.insert(module.clone(), path.clone());
            all.modules.insert(module);
            all.files.push((path, scanned));
        }
        let paths = all.files.iter().flat_map(|(_, scanned)| &scanned.paths);
        let mut imports = BTreeMap::new();
        for path in paths {
            if let Some(Import::Name(name)) = &path.import {
                imports.insert((path.module.clone(), name.clone()), path.segments.clone());
            }
        }
        all.imports = imports;
        Ok(all)
    }

    /// Every module, the root with them.
    #[must_use]
    pub fn modules(&self) -> Vec<Vec<String>> {
        self.modules.iter().cloned().collect()
    }

    /// Modules directly below the root.
    pub fn rooms(&self) -> impl Iterator<Item = &str> {
        let modules = self.modules.iter();
        modules.filter_map(|module| match module.as_slice() {
            [room] => Some(room.as_str()),
            _ => None,
        })
    }

    /// Every arrow from a module of this crate to another one.
    #[must_use]
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for (file, scanned) in &self.files {
            for path in &scanned.paths {
                let targets = self.targets(path);
                let others = targets.into_iter().filter(|to| *to != path.module);
                arrows.extend(others.map(|to| Arrow {
                    from: path.module.clone(),
                    to_file: self.home_of(&to),
                    to,
                    file: file.clone(),
                    line: path.line,
                }));
            }
        }
        // A line may lead to a module more than once.
        arrows.dedup();
        arrows
    }

    /// Every path into another crate whose name begins with `varta_`.
    pub(crate) fn foreign_paths(&self) -> impl Iterator<Item = (String, &FilePath, usize)> {
        let files = self.files.iter();
        let paths = files.flat_map(|(file, scanned)| {
            scanned.paths.iter().map(move |path| (path, file.as_path()))
        });
        paths.filter_map(|(path, file)| {
            let first = path.segments.first()?;
            let is_foreign = first.starts_with("varta_") && *first != self.name;
            is_foreign.then(|| (path.segments.join("::"), file, path.line))
        })
    }

    /// The modules of this crate that a path leads to: the one it names, and where that has the name from.
    fn targets(&self, path: &Path) -> Vec<Vec<String>> {
        let mut targets: Vec<Vec<String>> = Vec::new();
        let mut module = path.module.clone();
        let mut segments = path.segments.clone();
        // The name that a `use` makes is not yet known in the `use` itself.
        let mut by_import = path.import.is_none();
        while let Some(absolute) = self.absolute(&module, &segments, by_import) {
            // As far as there are modules; what is left is an item, or a name that was imported there.
            let depths = (0..=absolute.len()).rev();
            let mut known = depths.filter(|depth| self.modules.contains(&absolute[..*depth]));
            let (found, rest) = absolute.split_at(known.next().unwrap_or_default());
            if targets.iter().any(|target| target == found) {
                break;
            }
            targets.push(found.to_vec());
            let name = rest.first().map(|name| (found.to_vec(), name.clone()));
            let Some(import) = name.and_then(|name| self.imports.get(&name)) else {
                break;
            };
            segments = import.iter().chain(&rest[1..]).cloned().collect();
            module = found.to_vec();
            by_import = false;
        }
        targets
    }

    /// A path from the root of the crate; `None` if it does not begin here. With `by_import` its first name may be one
    /// that the module has imported.
    fn absolute(
        &self,
        module: &[String],
        segments: &[String],
        by_import: bool,
    ) -> Option<Vec<String>> {
        let (first, rest) = segments.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            name => {
                let child: Vec<String> = module.iter().cloned().chain([name.to_owned()]).collect();
                if self.modules.contains(&child) {
                    child
                } else {
                    let import = self.imports.get(&(module.to_vec(), name.to_owned()));
                    let import = import.filter(|_| by_import)?;
                    self.absolute(module, import, false)?
                }
            }
        };
        let mut rest = rest.iter().peekable();
        while rest.next_if(|segment| *segment == "super").is_some() {
            base.pop()?;
        }
        base.extend(rest.cloned());
        Some(base)
    }

    /// The file that a module stands in.
    fn home_of(&self, module: &[String]) -> PathBuf {
        let depths = (0..=module.len()).rev();
        let mut homes = depths.filter_map(|depth| self.homes.get(&module[..depth]));
        homes.next().cloned().unwrap_or_default()
    }
}

fn collect(directory: &FilePath, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The module of a file, by its path below `src`.
fn module_of(below: &FilePath) -> Vec<String> {
    let parts = below.with_extension("");
    let mut parts: Vec<String> = parts
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let is_root = parts.len() == 1 && ["lib", "main"].contains(&parts[0].as_str());
    if is_root || parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}
