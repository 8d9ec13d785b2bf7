//! `model fetch` and `model info`.

use super::args::{ModelArgs, ModelCommand};
use super::output;
use crate::failure::{Exit, Result};
use crate::run::fetcher;
use e2llm_backend::CancelFlag;

/// Commands on models.
///
/// # Errors
/// An unknown model; files that cannot be had.
pub(super) fn model(args: &ModelArgs) -> Result<Exit> {
    match &args.command {
        ModelCommand::Fetch { name, models, quiet } => {
            let cancel = super::run::cancel_on_ctrl_c()?;
            let files =
                fetcher(models.models_file.as_deref(), models.offline, *quiet, &cancel)?.fetch(name)?;
            for path in [files.checkpoint, files.encoder, files.decoder].into_iter().flatten() {
                output::print(&format!("{}\n", path.display()))?;
            }
        }
        ModelCommand::Info { name, models, json } => {
            let fetcher =
                fetcher(models.models_file.as_deref(), models.offline, true, &CancelFlag::default())?;
            let info = fetcher.info(name)?;
            if *json { output::print_json(&info)? } else { output::print(&info.to_string())? }
        }
    }
    Ok(Exit::Done)
}
