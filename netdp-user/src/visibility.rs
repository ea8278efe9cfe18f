//! Compares docs/visibility.md with the tests that it names.

use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/visibility.md");

/// Rows of the document.
const ROWS: usize = 50;

/// A row of the document's tables.
struct Row {
    number: usize,
    /// `yes`, `partly` or `no`.
    has: String,
    /// Tests, as `crate: file::name`, and what is missing.
    shown_by: String,
}

fn rows() -> Vec<Row> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let tables = DOCUMENT.lines().filter(|line| line.starts_with('|'));
    let rows = tables.filter_map(|line| match &*cells(line) {
        [number, _, _, has, shown_by] => Some(Row {
            number: number.parse().ok()?,
            has: has.clone(),
            shown_by: shown_by.clone(),
        }),
        _ => None,
    });
    rows.collect()
}

/// Returns what a text has in backticks with `::`.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|it| it.contains("::"))
}

/// Finds `crate: file::name` in the sources.
///
/// # Errors
///
/// Returns what is wrong: the form, the file, or that it has no such test.
fn find(test: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{test}: {what}"));
    let Some((of, (file, name))) = test
        .split_once(": ")
        .and_then(|(of, rest)| Some((of, rest.split_once("::")?)))
    else {
        return wrong("not `crate: file::name`");
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let Ok(source) = fs::read_to_string(root.join(of).join(file)) else {
        return wrong("no such file");
    };
    let begin = format!("fn {name}(");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let is_test = |at: usize| {
        let above = lines[..at].iter().rev();
        let attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes.into_iter().any(|line| *line == "#[test]")
    };
    let mut places = (0..lines.len()).filter(|at| lines[*at].starts_with(&begin));
    if places.any(is_test) {
        Ok(())
    } else {
        wrong("no such test")
    }
}

#[test]
fn each_test_that_the_document_names_is_there() {
    let wrong: Vec<_> = tests(DOCUMENT).filter_map(|it| find(it).err()).collect();
    assert!(wrong.is_empty(), "docs/visibility.md: {wrong:#?}");
}

#[test]
fn each_row_has_a_test_or_says_what_is_missing() {
    let rows = rows();
    let numbers: Vec<_> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
    for Row {
        number,
        has,
        shown_by,
    } in rows
    {
        let named = tests(&shown_by).count();
        let words = shown_by
            .split('`')
            .step_by(2)
            .flat_map(str::split_whitespace);
        let told = words.filter(|word| *word != ",").count();
        match &*has {
            "yes" => assert!(named > 0, "row {number} names no test"),
            "partly" => assert!(named > 0 && told > 5, "row {number}: {shown_by}"),
            "no" => assert!(named == 0 && told > 5, "row {number}: {shown_by}"),
            other => panic!("row {number}: {other:?} is neither yes, partly nor no"),
        }
    }
    let count = |has| self::rows().iter().filter(|row| row.has == has).count();
    let sum = format!(
        "{} rows are *yes*, {} *partly*, {} *no*.",
        count("yes"),
        count("partly"),
        count("no")
    );
    assert!(
        DOCUMENT.contains(&sum),
        "docs/visibility.md has to say: {sum}"
    );
}

#[test]
fn what_is_no_test_is_not_found() {
    let here = "netdp-user: src/visibility.rs";
    assert_eq!(
        find(&format!("{here}::what_is_no_test_is_not_found")),
        Ok(())
    );
    for (test, why) in [
        (format!("{here}::find"), "no such test"),
        (format!("{here}::nothing"), "no such test"),
        (
            "netdp-user: src/nowhere.rs::nothing".to_owned(),
            "no such file",
        ),
        ("nothing::at_all".to_owned(), "not `crate: file::name`"),
    ] {
        let told = find(&test).unwrap_err();
        assert!(told.ends_with(why), "{told}");
    }
}
