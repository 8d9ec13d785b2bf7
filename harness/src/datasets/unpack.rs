//! Taking files out of archives.

use super::catalogue::{ArchiveForm, Unpack, is_plain_relative};
use crate::models::install::{Expected, Failure, Target};
use crate::models::progress::Meter;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Unpacks into the target's folder; gives the files' names and sha256, in order of names.
///
/// # Errors
/// A damaged archive; a name that leads out of the folder; a file asked for that is not in it.
pub(super) fn unpack(
    archive: &Path,
    how: &Unpack,
    target: &Target<'_>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut taken = Vec::new();
    let mut take = |member: &str, reader: &mut dyn Read| -> Result<(), Failure> {
        let Some(name) = wanted(member, how)? else { return Ok(()) };
        let expected = Expected { name: &name, size: None, sha256: None };
        let installed = target.install_expected(expected, reader, &Meter::hidden())?;
        taken.push((name, installed.sha256));
        Ok(())
    };
    let file = File::open(archive).map_err(|e| broken(&e))?;
    match how.form {
        ArchiveForm::Zip => {
            let mut zip = zip::ZipArchive::new(file).map_err(|e| broken(&e))?;
            for i in 0..zip.len() {
                let mut member = zip.by_index(i).map_err(|e| broken(&e))?;
                if member.is_file() {
                    let name = member.name().map_err(|e| broken(&e))?.into_owned();
                    take(&name, &mut member)?;
                }
            }
        }
        ArchiveForm::TarGz => {
            let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)));
            for member in tar.entries().map_err(|e| broken(&e))? {
                let mut member = member.map_err(|e| broken(&e))?;
                if member.header().entry_type().is_file() {
                    let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
                    take(&name, &mut member)?;
                }
            }
        }
    }
    taken.sort();
    if let Some(missing) = how.only.iter().find(|name| !taken.iter().any(|(n, _)| n == *name)) {
        return Err(Failure::Source(format!("has no file `{missing}` in `{}`", how.folder)));
    }
    if taken.is_empty() {
        return Err(Failure::Source(format!("has no files in `{}`", how.folder)));
    }
    Ok(taken)
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::Source(format!("is no archive that can be read: {error}"))
}

/// What a member is called in the task's folder, where it is one to take.
fn wanted(member: &str, how: &Unpack) -> Result<Option<String>, Failure> {
    let member = member.trim_start_matches("./");
    let folder = how.folder.trim_matches('/');
    let inside = if folder.is_empty() {
        Some(member)
    } else {
        member.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'))
    };
    let Some(name) = inside.filter(|name| how.only.is_empty() || how.only.iter().any(|o| o == name)) else {
        return Ok(None);
    };
    if !is_plain_relative(name) {
        return Err(Failure::Source(format!("holds `{member}`, which leads out of its folder")));
    }
    Ok(Some(name.to_owned()))
}
