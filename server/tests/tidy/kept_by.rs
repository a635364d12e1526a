//! Which tests hold a line of a document: those that every run includes.

/// Whether a source has a test of that name which is not left out.
pub(crate) fn runs(source: &str, name: &str) -> bool {
    let definition = format!("fn {name}(");
    source.match_indices(definition.as_str()).any(|(at, _)| {
        // Up to an empty line, or one that ends something else.
        let above = source[..at].lines().rev().take_while(|line| !line.is_empty() && !line.ends_with('}'));
        let above: Vec<&str> = above.collect();
        let has = |attribute: &str| above.iter().any(|line| line.trim_start().starts_with(attribute));
        (has("#[test]") || has("#[tokio::test")) && !has("#[ignore")
    })
}
