use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use passerelle_models::{
    CheckpointFiles, FileHash, FileStamp, KnownHashes, LoadProgress, NothingKnown, demo_checkpoint,
};
use tempfile::TempDir;

use super::*;

fn go_on(_: LoadProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "words"),
        ("chat_template.jinja", "hi"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn files(folder: &Path) -> CheckpointFiles {
    CheckpointFiles::directory(folder).unwrap()
}

/// A private key and those who trust its other half.
fn keys(folder: &Path, name: &str) -> (SigningKey, TrustedKeys) {
    let file = folder.join(name);
    let public = SigningKey::create(&file).unwrap();
    (SigningKey::load(&file).unwrap(), TrustedKeys::load(&[public]).unwrap().unwrap())
}

fn import<'a>(data_dir: &'a TempDir, trust: Option<&'a TrustedKeys>) -> Import<'a> {
    Import { data_dir: data_dir.path(), name: "mine".parse().unwrap(), trust }
}

#[test]
fn what_one_key_signed_is_trusted_by_its_other_half_alone() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let ((key, trusted), (_, others)) = (keys(safe.path(), "lab"), keys(safe.path(), "other"));
    let model = files(folder.path());
    let unsigned = trusted.verify(&model, &NothingKnown, &go_on).unwrap_err().to_string();
    assert!(
        unsigned.contains("passerelle.manifest.sig: there is no such file, so the model is not signed"),
        "{unsigned}"
    );
    let digest = sign(&model, &key, &go_on).unwrap();
    assert_eq!(trusted.verify(&model, &NothingKnown, &go_on).unwrap(), digest);
    let foreign = others.verify(&model, &NothingKnown, &go_on).unwrap_err().to_string();
    assert!(foreign.contains("is not a signature by a trusted key"), "{foreign}");
    // Whoever writes another manifest has no signature for it.
    let manifest = ManifestFiles::of(&model).unwrap().manifest;
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(" 7 model", " 8 model")).unwrap();
    assert!(matches!(trusted.verify(&model, &NothingKnown, &go_on), Err(TrustError::Untrusted(_))));
    assert!(matches!(ManifestFiles::of(&demo_checkpoint()), Err(TrustError::Embedded)));
}

#[test]
fn a_manifest_states_the_digest_until_a_file_is_written_to_comes_or_goes() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, _) = keys(safe.path(), "lab");
    let model = files(folder.path());
    assert_eq!(stated_digest(&model), None, "it has no manifest");
    let digest = sign(&model, &key, &go_on).unwrap();
    assert_eq!(stated_digest(&model), Some(digest));
    let weights = folder.path().join("model.safetensors");
    let written = fs::metadata(ManifestFiles::of(&model).unwrap().manifest).unwrap().modified().unwrap();
    let write = |bytes: &str, modified: SystemTime| {
        fs::write(&weights, bytes).unwrap();
        File::options().write(true).open(&weights).unwrap().set_modified(modified).unwrap();
    };
    write("weights", written + Duration::from_secs(1));
    assert_eq!(stated_digest(&model), None, "it was written to later");
    write("weight", written);
    assert_eq!(stated_digest(&model), None, "it has another length");
    write("weights", written);
    assert_eq!(stated_digest(&model), Some(digest));
    fs::write(folder.path().join("generation_config.json"), "").unwrap();
    assert_eq!(stated_digest(&model), None, "another file came");
    fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    fs::remove_file(&weights).unwrap();
    assert_eq!(stated_digest(&model), None, "one is gone");
    assert_eq!(stated_digest(&demo_checkpoint()), None, "it lies in no file");
}

#[test]
fn papers_and_bundles_are_as_readable_as_any_new_file() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, _) = keys(safe.path(), "lab");
    let (model, bundle) = (files(folder.path()), safe.path().join("model.tar"));
    sign(&model, &key, &go_on).unwrap();
    write_bundle(&model, &bundle, &go_on).unwrap();
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode();
    let ManifestFiles { manifest, signature } = ManifestFiles::of(&model).unwrap();
    for file in [manifest, signature, bundle] {
        assert_eq!(mode(&file), mode(&folder.path().join("config.json")), "{}", file.display());
    }
}

#[test]
fn a_pair_of_keys_is_made_whole_or_not_at_all() {
    let safe = tempfile::tempdir().unwrap();
    let [private, public] = ["lab", "lab.pub"].map(|name| safe.path().join(name));
    for (there, other) in [(&public, &private), (&private, &public)] {
        fs::write(there, "somebody's").unwrap();
        let refused = SigningKey::create(&private).unwrap_err().to_string();
        assert!(refused.contains(&format!("{} is there already", there.display())), "{refused}");
        assert_eq!((fs::read_to_string(there).unwrap().as_str(), other.exists()), ("somebody's", false));
        fs::remove_file(there).unwrap();
    }
    // What stands in the way is seen when it is written to: a name that is free, and cannot be had with four more letters.
    let long = safe.path().join("k".repeat(255));
    SigningKey::create(&long).unwrap_err();
    assert_eq!(fs::read_dir(safe.path()).unwrap().count(), 0, "no private key without the other half");
    SigningKey::create(&private).unwrap();
}

#[test]
fn one_changed_byte_and_every_other_file_is_named() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, trusted) = keys(safe.path(), "lab");
    let model = files(folder.path());
    sign(&model, &key, &go_on).unwrap();
    let refused = || trusted.verify(&model, &NothingKnown, &go_on).unwrap_err().to_string();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"] {
        let path = folder.path().join(name);
        let former = fs::read(&path).unwrap();
        let mut changed = former.clone();
        changed[0] ^= 0x20;
        fs::write(&path, &changed).unwrap();
        assert!(refused().contains(&format!("{name}: is not what the manifest says")), "{}", refused());
        fs::remove_file(&path).unwrap();
        assert!(refused().contains(&format!("{name}: the manifest has it")), "{}", refused());
        fs::write(&path, &former).unwrap();
    }
    fs::write(folder.path().join("extra.py"), "import os").unwrap();
    assert!(refused().contains("extra.py: the manifest does not have it"), "{}", refused());
    // Nobody signs what nobody would serve.
    assert!(matches!(sign(&model, &key, &go_on), Err(TrustError::Mismatch(_))));
    fs::remove_file(folder.path().join("extra.py")).unwrap();
    trusted.verify(&model, &NothingKnown, &go_on).unwrap();
}

#[test]
fn a_copy_holds_what_is_part_of_the_checkpoint_and_its_papers() {
    let (folder, data_dir) = (checkpoint(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("README.md"), "read me").unwrap();
    let imported = import(&data_dir, None).checkpoint(&files(folder.path()), &go_on).unwrap();
    assert_eq!(imported.path, data_dir.path().join("models/mine"));
    assert_eq!(imported.signature, CopiedSignature::None);
    assert!(!imported.path.join("README.md").exists());
    let (key, trusted) = keys(data_dir.path(), "lab");
    assert_eq!(sign(&files(&imported.path), &key, &go_on).unwrap(), imported.digest);
    assert_eq!(trusted.verify(&files(&imported.path), &NothingKnown, &go_on).unwrap(), imported.digest);
    // The same again is no harm, and another one is none of this name.
    let again = import(&data_dir, None).checkpoint(&files(folder.path()), &go_on).unwrap();
    assert_eq!((again.digest, again.signature), (imported.digest, CopiedSignature::Kept));
    fs::write(folder.path().join("config.json"), "{ }").unwrap();
    let other = import(&data_dir, None).checkpoint(&files(folder.path()), &go_on);
    assert!(matches!(other, Err(TrustError::Exists(_))), "{other:?}");
    assert_eq!(half_done(&data_dir), 0);
    assert_eq!(find_imported(data_dir.path(), &"mine".parse().unwrap()), Some(imported.path));
}

/// Copies that have no name yet.
fn half_done(data_dir: &TempDir) -> usize {
    let entries = fs::read_dir(data_dir.path().join("importing")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}

#[test]
fn importing_again_mends_a_damaged_copy_and_takes_nothing_away_that_it_does_not_know() {
    let (folder, data_dir) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, trusted) = keys(data_dir.path(), "lab");
    sign(&files(folder.path()), &key, &go_on).unwrap();
    let import_it = || import(&data_dir, Some(&trusted)).checkpoint(&files(folder.path()), &go_on);
    let copy = import_it().unwrap().path;
    fs::write(copy.join("model.safetensors"), "Weights").unwrap();
    for name in ["tokenizer.json", "config.json"] {
        fs::remove_file(copy.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", copy.join("config.json")).unwrap();
    let again = import_it().unwrap();
    assert_eq!(again.num_mended, 3);
    assert_eq!(trusted.verify(&files(&copy), &NothingKnown, &go_on).unwrap(), again.digest);
    assert_eq!(import_it().unwrap().num_mended, 0);
    fs::write(copy.join("notes.txt"), "mine").unwrap();
    let refused = import_it().unwrap_err().to_string();
    assert!(refused.contains("notes.txt: the manifest does not have it; take it away"), "{refused}");
    assert!(copy.join("notes.txt").exists());
}

#[test]
fn importing_again_brings_back_a_module_whose_folder_is_gone() {
    let (folder, data_dir) = (checkpoint(), tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("modules.json"), "[]").unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), "mean").unwrap();
    let import_it = || import(&data_dir, None).checkpoint(&files(folder.path()), &go_on).unwrap();
    let copy = import_it().path;
    fs::remove_dir_all(copy.join("1_Pooling")).unwrap();
    assert_eq!(import_it().num_mended, 1);
    assert_eq!(fs::read_to_string(copy.join("1_Pooling/config.json")).unwrap(), "mean");
}

#[test]
fn a_signature_that_nobody_checked_takes_no_other_one_s_place() {
    let (folder, data_dir) = (checkpoint(), tempfile::tempdir().unwrap());
    let ((key, trusted), (other, others)) = (keys(data_dir.path(), "lab"), keys(data_dir.path(), "other"));
    let source = files(folder.path());
    let import_it = |trust| import(&data_dir, trust).checkpoint(&source, &go_on).unwrap();
    sign(&source, &key, &go_on).unwrap();
    let copy = import_it(Some(&trusted)).path;
    assert_eq!(import_it(None).signature, CopiedSignature::Kept, "it is the same");
    sign(&source, &other, &go_on).unwrap();
    assert_eq!(import_it(None).signature, CopiedSignature::Former);
    trusted.verify(&files(&copy), &NothingKnown, &go_on).unwrap();
    assert_eq!(import_it(Some(&others)).signature, CopiedSignature::Kept);
    others.verify(&files(&copy), &NothingKnown, &go_on).unwrap();
}

#[test]
fn what_a_killed_import_left_is_cleared_away_unless_another_one_is_under_way() {
    let (folder, data_dir) = (checkpoint(), tempfile::tempdir().unwrap());
    let left = data_dir.path().join("importing/.tmpKilled");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.safetensors"), "half of the wei").unwrap();
    let other = fs::File::create(data_dir.path().join("importing/lock")).unwrap();
    other.lock_shared().unwrap();
    import(&data_dir, None).checkpoint(&files(folder.path()), &go_on).unwrap();
    assert!(left.exists(), "it may be that of the other one");
    drop(other);
    import(&data_dir, None).checkpoint(&files(folder.path()), &go_on).unwrap();
    assert_eq!(half_done(&data_dir), 0);
}

#[test]
fn what_is_proven_of_a_file_takes_the_place_of_what_was_kept() {
    /// Whoever changed what is kept.
    struct Forged(std::sync::Mutex<Vec<String>>);
    impl KnownHashes for Forged {
        fn find(&self, _: &FileStamp) -> Option<FileHash> {
            "0".repeat(64).parse().ok()
        }
        fn learn(&self, _: FileStamp, hash: FileHash) {
            self.0.lock().unwrap().push(hash.to_string());
        }
    }
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, trusted) = keys(safe.path(), "lab");
    let model = files(folder.path());
    let digest = sign(&model, &key, &go_on).unwrap();
    let forged = Forged(std::sync::Mutex::default());
    assert_eq!(trusted.verify(&model, &forged, &go_on).unwrap(), digest);
    let learnt = forged.0.into_inner().unwrap();
    let text = fs::read_to_string(ManifestFiles::of(&model).unwrap().manifest).unwrap();
    assert!(learnt.len() == 4 && learnt.iter().all(|hash| text.contains(hash)), "{learnt:?}");
}

#[test]
fn a_folder_without_a_checkpoint_is_neither_copied_nor_signed_nor_bundled() {
    let (folder, data_dir, safe) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("step-1")).unwrap();
    fs::write(folder.path().join("README.md"), "read me").unwrap();
    let (model, (key, _)) = (files(folder.path()), keys(safe.path(), "lab"));
    let bundle = safe.path().join("mine.tar");
    let refused = [
        import(&data_dir, None).checkpoint(&model, &go_on).unwrap_err(),
        sign(&model, &key, &go_on).unwrap_err(),
        write_bundle(&model, &bundle, &go_on).unwrap_err(),
    ];
    for error in refused.map(|error| error.to_string()) {
        assert!(error.contains("config.json: not found"), "{error}");
    }
    assert_eq!(find_imported(data_dir.path(), &"mine".parse().unwrap()), None);
    assert!(!bundle.exists() && !folder.path().join("passerelle.manifest").exists());
}

#[test]
fn a_bundle_brings_a_model_and_its_signature_and_what_was_done_to_it_is_named() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let ((key, trusted), (_, others)) = (keys(safe.path(), "lab"), keys(safe.path(), "other"));
    let model = files(folder.path());
    let digest = sign(&model, &key, &go_on).unwrap();
    let bundle = safe.path().join("mine.tar");
    assert_eq!(write_bundle(&model, &bundle, &go_on).unwrap(), digest);
    assert!(write_bundle(&model, &bundle, &go_on).is_err(), "nothing is written over");
    let there = tempfile::tempdir().unwrap();
    assert!(matches!(import(&there, Some(&others)).bundle(&bundle, &go_on), Err(TrustError::Untrusted(_))));
    let imported = import(&there, Some(&trusted)).bundle(&bundle, &go_on).unwrap();
    assert_eq!((imported.digest, imported.signature), (digest, CopiedSignature::Kept));
    assert_eq!(trusted.verify(&files(&imported.path), &NothingKnown, &go_on).unwrap(), digest);
    let whole = fs::read(&bundle).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    // A prime, so that every kind of byte has its turn.
    for index in (0..whole.len()).step_by(13) {
        let mut changed = whole.clone();
        changed[index] ^= 1;
        fs::write(&bundle, &changed).unwrap();
        let refused = import(&elsewhere, Some(&trusted)).bundle(&bundle, &go_on);
        assert!(refused.is_err(), "byte {index} of {}", whole.len());
    }
    for cut in [0, 1, 512, 700, whole.len() / 2, whole.len() - 1] {
        fs::write(&bundle, &whole[..cut]).unwrap();
        let refused = import(&elsewhere, Some(&trusted)).bundle(&bundle, &go_on).unwrap_err().to_string();
        let why = if cut < 512 { "is no bundle of a model" } else { "ends in the middle" };
        assert!(refused.contains(&format!("mine.tar: {why}")), "{cut} bytes: {refused}");
    }
    fs::write(&bundle, [&whole[..], b"more"].concat()).unwrap();
    assert!(import(&elsewhere, None).bundle(&bundle, &go_on).is_err(), "something after the end");
    fs::write(&bundle, "root:x:0:0:".repeat(100)).unwrap();
    let refused = import(&elsewhere, None).bundle(&bundle, &go_on).unwrap_err().to_string();
    assert!(refused.contains("mine.tar: is no bundle of a model"), "{refused}");
    assert_eq!(find_imported(elsewhere.path(), &"mine".parse().unwrap()), None);
}

/// What a bundle holds, entry by entry.
fn entries_of(bundle: &[u8]) -> Vec<(tar::Header, Vec<u8>)> {
    let (mut from, mut entries) = (bundle, Vec::new());
    while let Some(header) = tar::Header::read(&mut from).unwrap() {
        let (content, rest) = from.split_at(usize::try_from(header.size_bytes).unwrap());
        from = &rest[header.padding()..];
        entries.push((header, content.to_vec()));
    }
    entries
}

fn archive(entries: &[(tar::Header, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, content) in entries {
        header.write(&mut bytes).unwrap();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + header.padding(), 0);
    }
    tar::write_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_bundle_that_lacks_a_file_or_holds_another_is_refused_by_its_name() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let (key, trusted) = keys(safe.path(), "lab");
    let bundle = safe.path().join("mine.tar");
    sign(&files(folder.path()), &key, &go_on).unwrap();
    write_bundle(&files(folder.path()), &bundle, &go_on).unwrap();
    let (whole, elsewhere) = (fs::read(&bundle).unwrap(), tempfile::tempdir().unwrap());
    let entries = entries_of(&whole);
    assert_eq!(archive(&entries), whole);
    let refused = |entries: &[(tar::Header, Vec<u8>)]| {
        fs::write(&bundle, archive(entries)).unwrap();
        import(&elsewhere, Some(&trusted)).bundle(&bundle, &go_on).unwrap_err().to_string()
    };
    // After the manifest and the signature.
    for at in 2..entries.len() {
        let (name, mut without) = (&entries[at].0.name, entries.clone());
        without.remove(at);
        assert!(refused(&without).contains(&format!("{name}: the manifest has it")), "{}", refused(&without));
        let mut with = entries.clone();
        with.insert(at, (tar::Header { name: "x.py".to_owned(), size_bytes: 1 }, vec![0]));
        assert!(refused(&with).contains("x.py: the manifest does not have it"), "{}", refused(&with));
    }
    let unsigned = [&entries[..1], &entries[2..]].concat();
    assert!(refused(&unsigned).contains("so the model is not signed"), "{}", refused(&unsigned));
    assert!(refused(&entries[1..]).contains("does not begin with a manifest"), "{}", refused(&entries[1..]));
    let text = b"passerelle manifest 1\n".to_vec();
    let header = tar::Header { name: "passerelle.manifest".to_owned(), size_bytes: text.len() as u64 };
    fs::write(&bundle, archive(&[(header, text)])).unwrap();
    let of_nothing = import(&elsewhere, None).bundle(&bundle, &go_on).unwrap_err().to_string();
    assert!(of_nothing.contains("mine.tar: its manifest has no file"), "{of_nothing}");
    assert_eq!(find_imported(elsewhere.path(), &"mine".parse().unwrap()), None);
}

#[test]
fn a_bundle_is_a_tar_archive_that_other_tools_read_and_the_same_each_time() {
    let (folder, safe) = (checkpoint(), tempfile::tempdir().unwrap());
    let bundles = ["a.tar", "b.tar"].map(|name| safe.path().join(name));
    for bundle in &bundles {
        write_bundle(&files(folder.path()), bundle, &go_on).unwrap();
    }
    assert_eq!(fs::read(&bundles[0]).unwrap(), fs::read(&bundles[1]).unwrap());
    let listed = std::process::Command::new("tar").arg("tf").arg(&bundles[0]).output().unwrap();
    let names = "passerelle.manifest\nchat_template.jinja\nconfig.json\nmodel.safetensors\ntokenizer.json\n";
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), names);
}

#[test]
fn a_gguf_file_keeps_its_papers_beside_it() {
    let (folder, data_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("small.Q8_0.gguf");
    fs::write(&file, "GGUF and so on").unwrap();
    let (key, trusted) = keys(folder.path(), "lab");
    sign(&CheckpointFiles::gguf(&file).unwrap(), &key, &go_on).unwrap();
    assert!(folder.path().join("small.Q8_0.gguf.manifest.sig").exists());
    let model = CheckpointFiles::gguf(&file).unwrap();
    let imported = import(&data_dir, Some(&trusted)).checkpoint(&model, &go_on).unwrap();
    assert_eq!(imported.path, data_dir.path().join("models/mine.gguf"));
    let copy = CheckpointFiles::gguf(&imported.path).unwrap();
    assert_eq!(trusted.verify(&copy, &NothingKnown, &go_on).unwrap(), imported.digest);
    let bundle = folder.path().join("small.tar");
    write_bundle(&copy, &bundle, &go_on).unwrap();
    let there = tempfile::tempdir().unwrap();
    let unpacked = import(&there, Some(&trusted)).bundle(&bundle, &go_on).unwrap();
    assert_eq!((unpacked.path, unpacked.digest), (there.path().join("models/mine.gguf"), imported.digest));
    fs::write(&imported.path, "GGUF and so off").unwrap();
    let refused = trusted.verify(&copy, &NothingKnown, &go_on).unwrap_err().to_string();
    assert!(refused.contains("mine.gguf: is not what the manifest says"), "{refused}");
}

#[test]
fn keys_are_what_openssl_makes_and_reads_and_a_private_one_is_its_owners() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lab");
    let public = SigningKey::create(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(SigningKey::create(&file).is_err(), "nothing is written over");
    assert!(matches!(PublicKey::load(&file), Err(KeyError::NotInside { half: "public", .. })));
    assert!(matches!(PublicKey::load(&folder.path().join("nowhere")), Err(KeyError::Io { .. })));
    // As `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.
    let theirs = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGCjE5nFppH7zVRDOpsF/xlQ73hjr3Cp6ez/eZAvHX82\n-----END PRIVATE KEY-----\n";
    let their_public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGytUa0jhvlliP14bboW7CkE/xyR0oFlu/mvPSUbSnA4=\n-----END PUBLIC KEY-----\n";
    let [private, other] = ["private", "public"].map(|name| folder.path().join(name));
    fs::write(&private, theirs).unwrap();
    fs::write(&other, their_public).unwrap();
    let (key, trusted) = (SigningKey::load(&private).unwrap(), PublicKey::load(&other).unwrap());
    let signature = key.sign(b"text");
    assert!(trusted.verifies(b"text", &signature) && !trusted.verifies(b"Text", &signature));
    assert!(!PublicKey::load(&public).unwrap().verifies(b"text", &signature));
    // Of another kind: P-256.
    let p256 = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEA9E34hN7UyRs5Nr3NbgyXUQP8rRI\ngubDSKvm4/VzdHnfUVyj7iR/cSU2ALS4KJOKEZn8/fpQuzHJj17H79gCww==\n-----END PUBLIC KEY-----\n";
    fs::write(&other, p256).unwrap();
    assert!(matches!(PublicKey::load(&other), Err(KeyError::OtherKind(_))));
}

#[test]
fn a_copy_is_called_as_its_source_and_nothing_that_leads_elsewhere() {
    for (source, name) in [
        ("./runs/step-10/", "step-10"),
        ("org/name@v1", "name-v1"),
        ("/media/disk/model.tar", "model"),
        ("a.Q8_0.gguf", "a.Q8_0"),
        ("B.GGUF", "B"),
        ("demo", "demo"),
    ] {
        assert_eq!(ImportedName::of_source(source).unwrap(), name.parse().unwrap());
    }
    for odd in ["", ".", "..", ".hidden", "a/b", "a b", &"x".repeat(101)] {
        assert!(odd.parse::<ImportedName>().is_err(), "{odd}");
    }
}
