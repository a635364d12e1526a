//! `service_tier` and `priority`: how urgent a request says it is.

use crate::api::errors::ApiError;
use crate::api::fields::{Fields, invalid, unsupported};
use crate::gateway::account::ServiceClass;

/// The class that a request asks for, by either name. `None`: it leaves that to its key.
///
/// A `priority` counts as in vLLM: whoever has less goes first, and 0 says nothing.
pub(crate) fn read_class(fields: &mut Fields) -> Result<Option<ServiceClass>, ApiError> {
    let by_tier = match fields.string("service_tier")?.as_deref() {
        None | Some("auto") => None,
        Some("default") => Some(ServiceClass::Standard),
        Some("flex") => Some(ServiceClass::Batch),
        Some("priority") => Some(ServiceClass::Interactive),
        Some(_) => return Err(unsupported("service_tier", "the tiers are `auto`, `default`, `flex` and `priority`")),
    };
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?.unwrap_or(0);
    let by_priority = match priority {
        ..0 => Some(ServiceClass::Interactive),
        0 => None,
        1.. => Some(ServiceClass::Batch),
    };
    match (by_tier, by_priority) {
        (Some(tier), Some(priority)) if tier != priority => {
            Err(invalid("priority", "says something else than `service_tier`; give one of them"))
        }
        _ => Ok(by_tier.or(by_priority)),
    }
}

/// The tier that a request of this class was served in.
pub(crate) fn tier_name(class: ServiceClass) -> &'static str {
    match class {
        ServiceClass::Interactive => "priority",
        ServiceClass::Standard => "default",
        ServiceClass::Batch => "flex",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::errors::ErrorKind;
    use crate::api::fields::{Field, Reader, UnknownFields, honoured};

    const TABLE: &[Field] = &[honoured("service_tier"), honoured("priority")];

    fn read(body: Value) -> Result<Option<ServiceClass>, ErrorKind> {
        let mut reader = Reader::new(UnknownFields::Error);
        let mut fields = reader.open(body, "", &[TABLE]).unwrap();
        read_class(&mut fields).map_err(|error| error.kind())
    }

    #[test]
    fn a_tier_and_a_priority_name_a_class() {
        let cases = [
            (json!({}), None),
            (json!({"service_tier": "auto", "priority": 0}), None),
            (json!({"service_tier": "default"}), Some(ServiceClass::Standard)),
            (json!({"service_tier": "flex", "priority": 9}), Some(ServiceClass::Batch)),
            (json!({"service_tier": "priority"}), Some(ServiceClass::Interactive)),
            (json!({"priority": -1}), Some(ServiceClass::Interactive)),
            (json!({"priority": 1}), Some(ServiceClass::Batch)),
        ];
        for (body, class) in cases {
            assert_eq!(read(body.clone()), Ok(class), "{body}");
        }
    }

    #[test]
    fn a_tier_that_is_not_there_and_two_that_disagree_are_refused() {
        assert_eq!(read(json!({"service_tier": "scale"})), Err(ErrorKind::UnsupportedParameter));
        assert_eq!(read(json!({"service_tier": "flex", "priority": -1})), Err(ErrorKind::InvalidValue));
        assert_eq!(read(json!({"priority": 1_u64 << 40})), Err(ErrorKind::InvalidValue));
    }
}
