//! `HYPURA_TIMELINE`: what is recorded adds up.

mod common;

use std::collections::HashMap;

use common::{TestDirectory, dense_model, expert_model, within};

#[test]
fn whatever_begins_ends_and_nothing_is_computed_on_before_it_is_read() {
    within(300, || {
        for make in [expert_model, dense_model] {
            let model = make(TestDirectory::new(), 5, 1);
            let output = TestDirectory::new();
            let path = output.path().join("timeline.csv");
            let settings = [("HYPURA_TIMELINE", path.to_str().unwrap()), ("HYPURA_PREFETCH", "off")];
            let session = model.session_with_ram(model.minimum_bytes(&settings), &settings).unwrap();
            for _ in 0..3 {
                model.sweep(&session).unwrap();
            }
            drop(session);

            let text = std::fs::read_to_string(&path).unwrap();
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some("seconds,event,tensor,bytes"));
            // By tensor: whether it is being read, whether it was, and how often it is being computed on.
            let mut state: HashMap<&str, (bool, bool, u32)> = HashMap::new();
            let (mut latest, mut read_bytes) = (0.0, 0);
            for line in lines {
                let [seconds, event, tensor, bytes] = line.split(',').collect::<Vec<_>>().try_into().expect(line);
                let seconds: f64 = seconds.parse().expect(line);
                assert!(seconds >= latest, "{line}");
                latest = seconds;
                let (reading, was_read, computing) = state.entry(tensor).or_default();
                match event {
                    "read_begin" => assert!(!std::mem::replace(reading, true) && *computing == 0, "{line}"),
                    "read_end" => {
                        assert!(std::mem::replace(reading, false), "{line}");
                        *was_read = true;
                        read_bytes += bytes.parse::<usize>().expect(line);
                    }
                    "compute_begin" => {
                        assert!(*was_read && !*reading, "{line}");
                        *computing += 1;
                    }
                    "compute_end" => *computing -= 1,
                    "wait_begin" | "wait_end" => {}
                    _ => panic!("{line}"),
                }
            }
            assert!(state.values().all(|&(reading, _, computing)| !reading && computing == 0), "{text}");
            assert!(read_bytes > 0);
        }
    });
}
