use super::*;
use crate::evaluation::bootstrap::{Bounds, Interval, Resampling};
use crate::evaluation::comparison::{Measured, PairComparison};
use crate::evaluation::divergence::{AnswerPair, CellScores, HeatCell, HeatMap, TextPair, TokenPair};
use crate::evaluation::score_file::RanOn;

const HOSTILE: &str = "<script>alert('x')</script>\"&</style></title><!--";

fn interval(value: f64) -> Interval {
    Interval { value, bounds: Some(Bounds { low: value - 0.1, high: value + 0.1 }) }
}

fn ranked(given: usize, name: &str, step: Option<u64>) -> Ranked {
    let from_above = (given > 0).then(|| interval(0.3));
    let digest = format!("sha256:{}", "0f".repeat(32)).parse().unwrap();
    let of = |metric| Measured { metric, interval: interval(0.5 + given as f64), from_above };
    let ran_on = RanOn { device: name.into(), kernels: "avx2+fma".into(), bits_of: "portable".into(), numerics: 2 };
    Ranked { name: name.into(), digest, step, ran_on: Some(ran_on), given, metrics: Metric::ALL.map(of).to_vec() }
}

/// Every text in it is `text`.
fn comparison(text: &str, steps: [Option<u64>; 2]) -> Comparison {
    let own = || text.to_owned();
    let document = TextPair { id: own(), bytes: 9, first: 0.5, second: 1.5 };
    let scores = CellScores { first: -0.5, second: -3.0, first_rank: 1, second_rank: 4 };
    let cell = |scores| HeatCell { token: own(), scores };
    let answer = AnswerPair {
        id: own(),
        wanted: own(),
        common: own(),
        position: 1,
        first: own(),
        second: own(),
        first_is_right: true,
        second_is_right: false,
    };
    Comparison {
        data: own(),
        num_compared: 1,
        num_items: Some(2),
        resampling: Resampling::default(),
        against: Some(ranked(0, text, None).digest),
        ranked_by: Metric::BitsPerByte,
        ranking: vec![ranked(0, text, steps[0]), ranked(1, text, steps[1])],
        pair: PairComparison {
            first: own(),
            second: own(),
            texts: vec![document.clone()],
            texts_that_differ_most: vec![document],
            tokens_that_differ_most: vec![TokenPair {
                item: own(),
                position: 3,
                before: own(),
                token: own(),
                first: -0.5,
                second: -3.0,
            }],
            heat_maps: vec![HeatMap { item: own(), cells: vec![cell(None), cell(Some(scores))] }],
            num_answers: 1,
            num_equal_answers: 0,
            answers_that_part: vec![answer],
        },
    }
}

#[test]
fn no_text_of_the_data_becomes_markup() {
    let page = html(&comparison(HOSTILE, [Some(1), Some(2)]));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert_eq!(page.matches("<script").count(), 0);
    assert_eq!(page.matches("</style>").count(), 1);
    assert_eq!(page.matches("<!--").count(), 0);
    let quotes_in_tags = page.split('<').skip(1).filter_map(|tag| tag.split_once('>'));
    assert!(quotes_in_tags.into_iter().all(|(tag, _)| tag.matches('"').count() % 2 == 0), "a text left its attribute");
}

#[test]
fn the_page_loads_nothing() {
    let page = html(&comparison("a", [Some(1), Some(2)]));
    for loads in ["http:", "https:", "src=", "@import", "url(", "<link", "<img", "<iframe", "<script"] {
        assert!(!page.contains(loads), "{loads}");
    }
}

#[test]
fn the_page_says_that_it_holds_the_data() {
    assert!(html(&comparison("a", [None, None])).contains("This page holds texts of the data set"));
}

#[test]
fn curves_run_over_steps_where_all_are_known_and_over_the_files_otherwise() {
    assert!(html(&comparison("a", [Some(1000), Some(40_000)])).contains("Over the steps of the run"));
    assert!(html(&comparison("a", [Some(1000), None])).contains("--step NAME=STEP"));
}

#[test]
fn the_page_says_what_divergences_are_to_and_where_bits_were_of_different_kernels() {
    let equal = comparison("a", [None, None]);
    assert!(html(&equal).contains("<figcaption>Documents: KL divergence, nats a token, to a</figcaption>"));
    assert!(!html(&equal).contains("different bits"));
    let other = RanOn { device: "a".into(), kernels: "avx512+vnni+bf16".into(), bits_of: "bf16".into(), numerics: 2 };
    let ranking = vec![ranked(0, "a", None), Ranked { ran_on: Some(other), ..ranked(1, "b", None) }];
    assert!(html(&Comparison { ranking, ..equal }).contains("Scored by kernels of different bits"));
}

#[test]
fn of_many_checkpoints_the_curves_come_before_the_table() {
    let of = |count: usize| {
        let few = comparison("a", [Some(1), Some(2)]);
        let ranking = (0..count).map(|given| ranked(given, "a", Some(given as u64))).collect();
        let page = html(&Comparison { ranking, ..few });
        page.find("Over the run").unwrap() < page.find("<h2>Ranking").unwrap()
    };
    assert_eq!((of(8), of(9)), (false, true));
}

#[test]
fn a_token_is_coloured_by_the_difference_of_its_log_probabilities() {
    let page = html(&comparison("word", [None, None]));
    assert!(
        page.contains("<span class=\"t a4\" title=\"word: −0.500 (rank 1)&#10;word: −3.000 (rank 4)\">word</span>")
    );
    assert!(page.contains("<span class=\"t unscored\">word</span>"));
}

#[test]
fn every_tag_that_is_opened_is_closed() {
    let page = html(&comparison("a", [Some(1), Some(2)]));
    for tag in ["section", "table", "tr", "td", "figure", "svg", "article", "dl", "dd", "span", "small", "p", "main"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}
