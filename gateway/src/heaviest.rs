//! The clients that were sent the most bytes, in little memory: a series for each client would be too many.
//!
//! (The *Space-Saving* sketch: Metwally, Agrawal, El Abbadi, *Efficient Computation of Frequent and Top-k Elements in
//! Data Streams*, 2005. A figure is never too small, and too large by at most the sum over the places.)

use std::sync::{Arc, Mutex, PoisonError};

use common::catalogue::metrics::GATEWAY_TOP_CLIENT_BYTES;
use common::id::ClientId;
use common::telemetry::MetricsRegistry;

/// Clients with a figure of their own.
const PLACES: usize = 20;

/// Bytes by client, of at most [`PLACES`] of them. Cheap to clone.
#[derive(Clone, Default)]
pub struct HeaviestClients(Arc<Mutex<Vec<(ClientId, u64)>>>);

impl HeaviestClients {
    /// Shown by the registry.
    pub fn new(registry: &MetricsRegistry) -> Self {
        let heaviest = Self::default();
        let shown = heaviest.clone();
        registry.computed(&GATEWAY_TOP_CLIENT_BYTES, move || {
            let places = shown.0.lock().unwrap_or_else(PoisonError::into_inner);
            places.iter().map(|(client, bytes)| (vec![client.to_string()], *bytes as f64)).collect()
        });
        heaviest
    }

    pub fn add(&self, client: &ClientId, bytes: u64) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sum)) = places.iter_mut().find(|(known, _)| known == client) {
            *sum += bytes;
        } else if places.len() < PLACES {
            places.push((client.clone(), bytes));
        } else if let Some(lightest) = places.iter_mut().min_by_key(|(_, sum)| *sum) {
            *lightest = (client.clone(), lightest.1 + bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_clients_stay_and_no_more_than_fit_are_shown() {
        let registry = MetricsRegistry::new();
        let heaviest = HeaviestClients::new(&registry);
        let client = |number: usize| -> ClientId { format!("c{number}").parse().unwrap() };
        for round in 0..10 {
            for number in 0..5 {
                heaviest.add(&client(number), 1_000_000);
            }
            for light in 0..100 {
                heaviest.add(&client(100 + round * 100 + light), 10);
            }
        }
        let text = registry.render();
        let shown: Vec<_> = text.lines().filter(|line| line.contains("{client=")).collect();
        assert_eq!(shown.len(), PLACES, "{text}");
        for number in 0..5 {
            let line = format!("dozo_gateway_top_client_sent_bytes{{client=\"c{number}\"}} 10000000");
            assert!(shown.contains(&line.as_str()), "{line} is not in {shown:?}");
        }
    }
}
