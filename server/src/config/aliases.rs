//! Names that stand for models, checked as far as the configuration knows them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::ConfigError;
use super::models::fits_as_name;

/// By alias, then by model.
pub type Aliases = BTreeMap<String, BTreeMap<String, NonZeroU32>>;

/// Whether the models are served is known once all of them are.
pub(super) fn check_aliases(aliases: Aliases) -> Result<Aliases, ConfigError> {
    for (alias, models) in &aliases {
        if !fits_as_name(alias) {
            return Err(refused(alias, "is not a name".to_owned()));
        }
        if models.is_empty() {
            return Err(refused(alias, format!("stands for no model; write {alias} = {{ MODEL = 1 }}")));
        }
    }
    Ok(aliases)
}

/// Each alias stands for models that are served, and none of these is called like it.
pub fn check_targets(aliases: &Aliases, served: &[&str]) -> Result<(), ConfigError> {
    for (alias, models) in aliases {
        if served.contains(&alias.as_str()) {
            return Err(refused(alias, "is the name of a model; choose another one".to_owned()));
        }
        if let Some(unknown) = models.keys().find(|model| !served.contains(&model.as_str())) {
            return Err(refused(alias, format!("stands for `{unknown}`, which is not served")));
        }
    }
    Ok(())
}

fn refused(alias: &str, problem: String) -> ConfigError {
    ConfigError::value(format!("aliases.{alias}"), format!("`{alias}` {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(text: &str) -> Aliases {
        toml::from_str(text).expect("the test's TOML is well formed")
    }

    #[test]
    fn an_alias_stands_for_served_models_and_is_none_itself() {
        let served = ["old", "new"];
        check_targets(&aliases("chat = { old = 9, new = 1 }"), &served).expect("both are served");
        for (text, wanted) in [("old = { new = 1 }", "is the name of a model"), ("chat = { x = 1 }", "not served")] {
            let error = check_targets(&aliases(text), &served).expect_err(text).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn an_alias_without_a_model_is_refused_and_so_is_a_weight_of_nothing() {
        check_aliases(aliases("chat = {}")).expect_err("it stands for nothing");
        check_aliases(aliases("\"a b\" = { old = 1 }")).expect_err("no name");
        toml::from_str::<Aliases>("chat = { old = 0 }").expect_err("a weight of nothing");
    }
}
