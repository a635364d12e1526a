//! A server's `/metrics`, in Prometheus' text format, under the names that different servers use.

use crate::http::{Client, Connect, Request};

/// Sequences that hold memory.
const RUNNING: &[&str] = &["passerelle_running_sequences", "vllm:num_requests_running", "llamacpp:requests_processing"];
const WAITING: &[&str] = &["passerelle_waiting_requests", "vllm:num_requests_waiting", "llamacpp:requests_deferred"];
/// Blocks, or the share of them.
const KV_USED: &[&str] = &["passerelle_kv_blocks_used", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];
const RESERVATIONS: &[&str] = &["passerelle_ledger_reservations_open"];

#[derive(Debug, Clone, Default)]
pub struct MetricsPage {
    samples: Vec<(String, f64)>,
}

/// What requests hold at one moment; a server tells some of these.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Occupancy {
    pub running: Option<f64>,
    pub waiting: Option<f64>,
    pub kv_used: Option<f64>,
    pub reservations: Option<f64>,
}

impl MetricsPage {
    /// `None` where the server has no such page.
    pub async fn fetch<C: Connect>(client: &Client<C>, api_key: Option<&str>) -> Option<Self> {
        let request = Request { method: "GET", path: "/metrics", api_key, body: b"" };
        let (status, body) = client.fetch(&request).await.ok()?;
        (status == 200).then(|| Self::parse(&String::from_utf8_lossy(&body)))
    }

    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, rest) = line.split_once(['{', ' '])?;
            // A label's value may hold spaces and braces; the sample's value stands after the last brace.
            let values = if line[name.len()..].starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
            Some((name.to_owned(), values.split_whitespace().next()?.parse().ok()?))
        });
        Self { samples: samples.collect() }
    }

    /// Over all labels; `None` where there is no such series.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let values = self.samples.iter().filter(|(sample, _)| sample == name).map(|(_, value)| *value);
        values.reduce(|sum, value| sum + value)
    }

    pub fn occupancy(&self) -> Occupancy {
        let first = |names: &[&str]| names.iter().find_map(|name| self.sum(name));
        Occupancy {
            running: first(RUNNING),
            waiting: first(WAITING),
            kv_used: first(KV_USED),
            reservations: first(RESERVATIONS),
        }
    }
}

impl Occupancy {
    pub fn is_known(&self) -> bool {
        self.running.is_some() || self.kv_used.is_some()
    }

    pub fn is_idle(&self) -> bool {
        [self.running, self.waiting, self.kv_used, self.reservations].into_iter().flatten().all(|value| value == 0.0)
    }
}

impl std::fmt::Display for Occupancy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let parts = [
            ("running", self.running),
            ("waiting", self.waiting),
            ("KV used", self.kv_used),
            ("open reservations", self.reservations),
        ];
        let known = parts.into_iter().filter_map(|(name, value)| Some(format!("{} {name}", value?)));
        formatter.write_str(&known.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_whatever_its_labels_hold() {
        let page = MetricsPage::parse(concat!(
            "# HELP passerelle_kv_blocks_used Blocks.\n",
            "passerelle_kv_blocks_used{model=\"a b}\"} 3\n",
            "passerelle_kv_blocks_used{model=\"c\"} 4 1700000000\n",
            "passerelle_running_sequences 0\n",
        ));
        assert_eq!(page.sum("passerelle_kv_blocks_used"), Some(7.0));
        let occupancy = page.occupancy();
        assert_eq!((occupancy.running, occupancy.waiting), (Some(0.0), None));
        assert!(occupancy.is_known() && !occupancy.is_idle());
        assert_eq!(occupancy.to_string(), "0 running, 7 KV used");
    }
}
