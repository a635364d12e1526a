use super::*;
use crate::evaluation::scored::{Continuation, Outcome, TokenScores};

fn digest() -> ModelDigest {
    format!("sha256:{}", "a1".repeat(32)).parse().unwrap()
}

fn header(data: &str) -> Header {
    let settings = Settings {
        data: data.into(),
        num_items: Some(3),
        weights: "bf16".into(),
        keys_and_values: "bf16".into(),
        max_tokens: 8,
        against: None,
        ran_on: Some(ran_on("cpu", ["avx2+fma", "portable"])),
    };
    Header::new(digest(), "early".into(), "0.1.0", settings)
}

fn ran_on(device: &str, [kernels, bits_of]: [&str; 2]) -> RanOn {
    RanOn { device: device.into(), kernels: kernels.into(), bits_of: bits_of.into(), numerics: 2 }
}

fn open(folder: &tempfile::TempDir, data: &str) -> Result<ScoreWriter, ScoreFileError> {
    ScoreWriter::open(folder.path(), &header(data), Readers::AsUsual)
}

fn scored(id: &str) -> Scored {
    let tokens = TokenScores {
        ids: vec![5, 6],
        texts: vec!["a".into(), "b".into()],
        logprobs: vec![None, Some(-0.123_456_791_043_281_56)],
        ranks: vec![None, Some(1)],
        entropies: vec![None, Some(0.5)],
        kls: Vec::new(),
    };
    Scored { id: id.into(), outcome: Outcome::Document(Continuation { bytes: 2, tokens }) }
}

fn ids(path: &Path) -> Vec<String> {
    let mut reader = ScoreReader::open(path).unwrap();
    std::iter::from_fn(|| reader.next_scored().unwrap().map(|scored| scored.id)).collect()
}

#[test]
fn what_was_written_is_read_again_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(&folder, "d").unwrap();
    writer.append(&scored("1")).unwrap();
    let mut reader = ScoreReader::open(writer.path()).unwrap();
    assert_eq!(reader.header, header("d"));
    assert_eq!(reader.next_scored().unwrap(), Some(scored("1")));
    assert_eq!(reader.next_scored().unwrap(), None);
}

#[test]
fn a_file_cut_anywhere_goes_on_with_what_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = header("d").path_in(folder.path());
    let mut writer = open(&folder, "d").unwrap();
    ["1", "2", "3"].iter().for_each(|id| writer.append(&scored(id)).unwrap());
    drop(writer);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut writer = open(&folder, "d").unwrap();
        for id in ["1", "2", "3"].into_iter().filter(|id| !writer.is_done(id)).collect::<Vec<_>>() {
            writer.append(&scored(id)).unwrap();
        }
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn numbers_of_other_data_never_stand_in_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(&folder, "d").unwrap();
    writer.append(&scored("1")).unwrap();
    drop(writer);
    let error = open(&folder, "e").unwrap_err().to_string();
    assert!(error.contains("`data`") && error.contains("--out"), "{error}");
}

#[test]
fn numbers_of_other_kernels_never_stand_in_one_file_and_those_of_equal_bits_do() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder, "d").unwrap().append(&scored("1")).unwrap();
    let go_on = |ran_on: Option<RanOn>| {
        let mut header = header("d");
        header.settings.ran_on = ran_on;
        ScoreWriter::open(folder.path(), &header, Readers::AsUsual).map(|writer| writer.num_done())
    };
    assert_eq!(go_on(Some(ran_on("cpu", ["avx512+vnni", "portable"]))).unwrap(), 1);
    for (other, field) in [
        (Some(ran_on("NVIDIA H100", ["cuda", "portable"])), "`device` is cpu there and NVIDIA H100 here"),
        (Some(ran_on("cpu", ["reference", "reference"])), "`kernels` is portable there and reference here"),
        (Some(RanOn { numerics: 3, ..ran_on("cpu", ["avx2+fma", "portable"]) }), "`numerics` is 2 there and 3 here"),
        (None, "`device` is cpu there and not stated here"),
    ] {
        let error = go_on(other).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("--out"), "{error}");
    }
}

#[test]
fn a_header_that_names_no_device_is_read_and_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut old = header("d");
    old.settings.ran_on = None;
    let text = serde_json::to_string(&old).unwrap();
    assert!(!text.contains("ran_on"), "{text}");
    let line = serde_json::to_string(&scored("1")).unwrap();
    let path = old.path_in(folder.path());
    fs::write(&path, format!("{text}\n{line}\n")).unwrap();
    assert_eq!((ScoreReader::open(&path).unwrap().header, ids(&path)), (old, vec!["1".to_owned()]));
    let error = open(&folder, "d").unwrap_err().to_string();
    assert!(error.contains("`device` is not stated there and cpu here"), "{error}");
}

#[test]
fn a_file_begun_before_generations_were_written_is_of_the_first_and_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let text = serde_json::to_string(&header("d")).unwrap().replace(",\"numerics\":2", "");
    assert!(!text.contains("numerics"), "{text}");
    let path = header("d").path_in(folder.path());
    fs::write(&path, format!("{text}\n{}\n", serde_json::to_string(&scored("1")).unwrap())).unwrap();
    let of_now = ran_on("cpu", ["avx2+fma", "portable"]);
    let found = ScoreReader::open(&path).unwrap().header.settings.ran_on.unwrap();
    assert_eq!(found, RanOn { numerics: 1, ..of_now.clone() });
    assert!(!found.has_bits_of(&of_now));
    let error = open(&folder, "d").unwrap_err().to_string();
    assert!(error.contains("`numerics` is 1 there and 2 here") && error.contains("--out"), "{error}");
}

#[test]
fn a_file_without_an_item_binds_nobody() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder, "d").unwrap());
    let writer = open(&folder, "e").unwrap();
    assert_eq!(ScoreReader::open(writer.path()).unwrap().header, header("e"));
}

#[test]
fn two_writers_of_one_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(&folder, "d").unwrap();
    assert!(matches!(open(&folder, "d"), Err(ScoreFileError::Busy(_))));
}

#[test]
fn a_line_that_is_damaged_in_the_middle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(&folder, "d").unwrap();
    writer.append(&scored("1")).unwrap();
    writer.line(&"nonsense").unwrap();
    writer.append(&scored("2")).unwrap();
    let path = writer.path().to_owned();
    drop(writer);
    let error = open(&folder, "d").unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
    let mut reader = ScoreReader::open(&path).unwrap();
    assert!(reader.next_scored().is_ok() && reader.next_scored().is_err());
}

#[test]
fn what_a_full_disk_took_of_a_line_is_gone_before_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(&folder, "d").unwrap();
    writer.append(&scored("1")).unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let mut file = std::mem::replace(&mut writer.file, full);
    writer.append(&scored("2")).unwrap_err();
    assert!(!writer.is_done("2"));
    file.write_all(b"{\"id\":\"2\",\"outc").unwrap();
    writer.file = file;
    ["2", "3"].iter().for_each(|id| writer.append(&scored(id)).unwrap());
    let path = writer.path().to_owned();
    drop(writer);
    assert_eq!(ids(&path), ["1", "2", "3"]);
    assert_eq!(open(&folder, "d").unwrap().num_done(), 3);
}

#[test]
fn a_folder_stands_for_its_score_files() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(find(&[folder.path().to_owned()]), Err(ScoreFileError::NoFiles(_))));
    assert!(matches!(find(&[folder.path().join("nowhere")]), Err(ScoreFileError::Io { .. })));
    drop(open(&folder, "d").unwrap());
    fs::write(folder.path().join("notes.txt"), "").unwrap();
    let found = find(&[folder.path().to_owned()]).unwrap();
    assert_eq!(found, [header("d").path_in(folder.path())]);
    assert_eq!(ids(&found[0]), Vec::<String>::new());
}
