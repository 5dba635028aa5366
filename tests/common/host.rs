//! A host that uses the C ABI from Rust.

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

use hypura::ffi::*;

use super::Model;

/// A model opened through the ABI, streamed with the smallest budget unless settings say otherwise.
pub struct Host {
    pub model: *mut HypuraModel,
    pub fetch: *mut HypuraFetch,
    pub tensor: usize,
}

impl Host {
    pub fn new(model: &Model, settings: &[&str]) -> Self {
        let path = CString::new(model.paths[0].to_str().unwrap()).unwrap();
        let settings: Vec<CString> =
            ["HYPURA=stream"].iter().chain(settings).map(|setting| CString::new(*setting).unwrap()).collect();
        let mut entries: Vec<*const c_char> = settings.iter().map(|setting| setting.as_ptr()).collect();
        entries.push(null());
        let mut host = Self { model: null_mut(), fetch: null_mut(), tensor: 0 };
        let path = path.as_ptr();
        // SAFETY: one path, a terminated array of settings, and a place for the model.
        assert_eq!(unsafe { hypura_model_open(&path, 1, entries.as_ptr(), &mut host.model, null_mut(), 0) }, 0);
        // SAFETY: the model is ours alone.
        assert_eq!(unsafe { hypura_model_plan(host.model, null(), 0, null_mut(), null_mut(), 0) }, 0);
        // SAFETY: the model is open, the name a string, and there is a place for the number.
        let found = unsafe {
            hypura_model_find_tensor(host.model, c"blk.0.ffn_up_exps.weight".as_ptr(), &mut host.tensor, null_mut(), 0)
        };
        assert_eq!(found, 0);
        // SAFETY: the model is open, and there is a place for the fetch.
        assert_eq!(unsafe { hypura_fetch_new(host.model, &mut host.fetch, null_mut(), 0) }, 0);
        host
    }

    pub fn begin(&self, ids: &[i32], tokens: usize) -> i32 {
        // SAFETY: the fetch is ours alone, the ids are as many as said.
        unsafe { hypura_fetch_begin(self.fetch, self.tensor, ids.as_ptr(), ids.len(), tokens, null_mut(), 0) }
    }

    /// The status and the experts of the blocks.
    pub fn next(&self, capacity: usize) -> (i32, Vec<u64>) {
        let mut blocks: Vec<HypuraBlock> = (0..capacity).map(|_| HypuraBlock { expert: 0, data: null() }).collect();
        let mut count = 0;
        // SAFETY: the fetch is ours alone, and there is room for `capacity` blocks and the count.
        let status = unsafe { hypura_fetch_next(self.fetch, blocks.as_mut_ptr(), capacity, &mut count, null_mut(), 0) };
        (status, blocks[..count].iter().map(|block| block.expert).collect())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: it came from `hypura_fetch_new` and is not used any more.
        unsafe { hypura_fetch_free(self.fetch) };
        // SAFETY: it came from `hypura_model_open` and is not used any more.
        unsafe { hypura_model_free(self.model) };
    }
}

/// Another file's bytes in place of the model's.
pub fn overwrite(model: &Model) {
    let size = std::fs::metadata(&model.paths[0]).unwrap().len() as usize;
    std::fs::write(&model.paths[0], vec![0x5a; size]).unwrap();
}
