//! A fetch: weights on their way to a multiplication.

use std::ffi::{c_char, c_void};

use super::boundary::{guard, guard_infallible};
use super::model::HypuraModel;
use super::pointers;
use crate::stream::{Block, Fetch};

/// A demand for weights, reusable. Opaque. One per thread that computes.
pub struct HypuraFetch {
    fetch: Fetch,
    delivered: Vec<Block>,
    /// The part of `delivered` that did not fit the host's array yet starts here.
    position: usize,
    /// What hypura_fetch_early() delivered last.
    early: Vec<Block>,
}

/// Weights in RAM, as the file has them: a tensor without experts (`size_bytes` bytes), or one expert of a tensor
/// (`size_bytes` / `expert_count` bytes, a matrix of `shape[0]` columns and `shape[1]` rows).
#[repr(C)]
pub struct HypuraBlock {
    /// Which expert; 0 for a tensor without experts.
    pub expert: u64,
    /// Its first byte, aligned to 32 bytes if the file is.
    pub data: *const c_void,
}

/// Makes a fetch for a model that is streamed.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param out receives the fetch, which the host frees with hypura_fetch_free()
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT when the model is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_new(
    model: *const HypuraModel,
    out: *mut *mut HypuraFetch,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        let fetch = model.session()?.new_fetch();
        let fetch = HypuraFetch { fetch, delivered: Vec::new(), position: 0, early: Vec::new() };
        // SAFETY: the contract of this function.
        unsafe { pointers::give(out, Box::new(fetch), "out") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Demands a streamed tensor, and starts reading what is not in RAM. Ends an earlier demand of the fetch that was not
/// finished. The first demand of a model sizes its memory.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call
/// @param tensor its index, below hypura_model_tensor_count()
/// @param ids the router's choices, the same number for each token, one token after the other; an expert may appear many
///     times and is delivered once; NULL for a tensor without experts
/// @param id_count how many there are; 0 for a tensor without experts
/// @param token_count how many tokens are computed
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT; at the first demand HYPURA_STATUS_BUDGET, HYPURA_STATUS_RESOURCE,
///     HYPURA_STATUS_OPEN and HYPURA_STATUS_CONFIG; after a failed read of this model its error
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_begin(
    fetch: *mut HypuraFetch,
    tensor: usize,
    ids: *const i32,
    id_count: usize,
    token_count: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let this = unsafe { pointers::exclusive(fetch, "fetch") }?;
        // SAFETY: the contract of this function.
        let ids = unsafe { pointers::slice(ids, id_count, "ids") }?;
        this.delivered.clear();
        this.position = 0;
        this.fetch.begin(tensor, ids, token_count)
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// As hypura_fetch_begin(), for a host that has copies of some of the experts (hypura_copy_add()): all that are used count, but only those
/// that are wanted are delivered.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call
/// @param tensor its index, below hypura_model_tensor_count()
/// @param ids,id_count,token_count as for hypura_fetch_begin()
/// @param wanted which experts are to be delivered, each of them among `ids`
/// @param wanted_count how many; 0 is allowed
/// @param error,error_size where the reason goes
/// @return as hypura_fetch_begin()
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_begin_some(
    fetch: *mut HypuraFetch,
    tensor: usize,
    ids: *const i32,
    id_count: usize,
    token_count: usize,
    wanted: *const i32,
    wanted_count: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let this = unsafe { pointers::exclusive(fetch, "fetch") }?;
        // SAFETY: the contract of this function.
        let ids = unsafe { pointers::slice(ids, id_count, "ids") }?;
        // SAFETY: the contract of this function.
        let wanted = unsafe { pointers::slice(wanted, wanted_count, "wanted") }?;
        this.delivered.clear();
        this.position = 0;
        this.fetch.begin_some(tensor, ids, token_count, Some(wanted))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Tells that the next demand is the first of a pass: of the graph that is computed for a batch of tokens. Optional, and for all passes
/// of a fetch or none: without it a pass begins whenever the tensor is demanded that was demanded first of all, which is wrong for
/// models that use a tensor several times for one token, and counts such a token several times.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_begin_pass(fetch: *mut HypuraFetch) {
    // SAFETY: the contract of this function.
    let Some(this) = (unsafe { fetch.as_mut() }) else { return };
    guard_infallible((), || this.fetch.begin_pass());
}

/// Tells what goes into the multiplication that was demanded last, as the experts get it, or as the router got it where their
/// widths differ. The library can then foresee what the next layer wants, and learns from any layer, a prompt's too. Optional; what is not
/// what it should be makes no difference but in time.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
/// @param rows the input of one token after the other, the last ones of the batch; NULL is allowed
/// @param row_length floats of each
/// @param row_count how many tokens; more than 8 are ignored
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_look_ahead(
    fetch: *mut HypuraFetch,
    rows: *const f32,
    row_length: usize,
    row_count: usize,
) {
    // SAFETY: the contract of this function.
    let Some(this) = (unsafe { fetch.as_ref() }) else { return };
    let Some(length) = row_length.checked_mul(row_count).filter(|_| !rows.is_null()) else { return };
    // SAFETY: the contract of this function.
    let rows = unsafe { std::slice::from_raw_parts(rows, length) };
    guard_infallible((), || this.fetch.look_ahead(row_length, rows));
}

/// Tells what the coming pass is certain to want, as soon as it is known: which rows of a table, or which experts of a layer where they
/// follow from the tokens and not from what the layer gets. Reading begins at once, behind what somebody waits for and before what is only
/// foreseen. Optional; to be called before the pass's first demand, in the order of the pass; what is not what it should be makes no
/// difference but in time.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
/// @param tensor a table, or one of the layer's tensors that hold experts; the others are read, too
/// @param ids the rows or experts, in the order of the tokens, repetitions welcome
/// @param id_count how many
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_expect(fetch: *mut HypuraFetch, tensor: usize, ids: *const i32, id_count: usize) {
    // SAFETY: the contract of this function.
    let Some(this) = (unsafe { fetch.as_mut() }) else { return };
    // SAFETY: the contract of this function.
    let Ok(ids) = (unsafe { pointers::slice(ids, id_count, "ids") }) else { return };
    guard_infallible((), || this.fetch.expect(tensor, ids));
}

/// Copies rows of a table (hypura_model_is_table()), one after the other, waiting for those that have to be read. It is no demand: what
/// one delivers stays valid.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call
/// @param tensor the table's index
/// @param ids the rows, in any order; a row may be wanted many times
/// @param id_count how many
/// @param rows receives them
/// @param rows_size bytes there: `id_count` times those of a row
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT; at the first use what hypura_fetch_begin() returns then; any read
///     error of this model, also of earlier demands, and then what `rows` holds is undefined
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_rows(
    fetch: *mut HypuraFetch,
    tensor: usize,
    ids: *const i32,
    id_count: usize,
    rows: *mut u8,
    rows_size: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let this = unsafe { pointers::exclusive(fetch, "fetch") }?;
        // SAFETY: the contract of this function.
        let ids = unsafe { pointers::slice(ids, id_count, "ids") }?;
        if rows.is_null() || isize::try_from(rows_size).is_err() {
            return Err(pointers::invalid("rows is NULL or has too many bytes"));
        }
        // SAFETY: the contract of this function: the host gives so many bytes, which nobody else uses during the call.
        unsafe { std::ptr::write_bytes(rows, 0, rows_size) };
        // SAFETY: as above, and all of them have been written just now.
        let rows = unsafe { std::slice::from_raw_parts_mut(rows, rows_size) };
        this.fetch.rows(tensor, ids, rows)
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Delivers blocks that are ready, what was in RAM first, and waits only when none is. Each block of the demand comes exactly
/// once, in any order, and stays valid until the next call with this fetch.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call
/// @param blocks receives them
/// @param capacity how many it has room for, at least 1
/// @param count receives how many there are; 0 when all have been delivered
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT; any read error of this model, also of earlier demands, and
///     then nothing is delivered
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_next(
    fetch: *mut HypuraFetch,
    blocks: *mut HypuraBlock,
    capacity: usize,
    count: *mut usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let this = unsafe { pointers::exclusive(fetch, "fetch") }?;
        if blocks.is_null() || capacity == 0 || count.is_null() {
            return Err(pointers::invalid("blocks or count is NULL, or capacity is 0"));
        }
        if this.position == this.delivered.len() {
            this.position = 0;
            this.fetch.next(&mut this.delivered)?;
        } else {
            // What did not fit the host's array last time; nothing is delivered after an error.
            this.fetch.check()?;
        }
        // SAFETY: the caller vouches for that much room.
        let written = unsafe { write_blocks(&this.delivered[this.position..], blocks, capacity) };
        this.position += written;
        // SAFETY: the contract of this function.
        unsafe { pointers::write(count, written, "count") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Whether hypura_fetch_next() would return at once. Where it would not, there may be other work meanwhile: hypura_fetch_early().
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
/// @return true if hypura_fetch_next() would not block, also when it would return an error
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_is_ready(fetch: *const HypuraFetch) -> bool {
    // SAFETY: the contract of this function.
    let Some(this) = (unsafe { fetch.as_ref() }) else { return true };
    guard_infallible(true, || this.position < this.delivered.len() || this.fetch.is_ready())
}

/// Delivers, of another tensor of the same layer, what is in RAM of the experts that are demanded now, so that something can be
/// computed while the drive is waited for. Optional. It never waits, and it is no demand: a later hypura_fetch_begin() for that
/// tensor delivers all of its experts, these too. The blocks stay valid until the next call with this fetch. There are none as long as
/// hypura_fetch_next() has some left that did not fit the host's array.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call
/// @param tensor its index, below hypura_model_tensor_count()
/// @param blocks receives them
/// @param capacity how many it has room for; more are left out
/// @param count receives how many there are
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT, also without a demand; any read error of this model
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_early(
    fetch: *mut HypuraFetch,
    tensor: usize,
    blocks: *mut HypuraBlock,
    capacity: usize,
    count: *mut usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let this = unsafe { pointers::exclusive(fetch, "fetch") }?;
        if blocks.is_null() || count.is_null() {
            return Err(pointers::invalid("blocks or count is NULL"));
        }
        let mut written = 0;
        if this.position == this.delivered.len() {
            this.position = 0;
            this.delivered.clear();
            this.fetch.early(tensor, &mut this.early)?;
            // SAFETY: the caller vouches for that much room.
            written = unsafe { write_blocks(&this.early, blocks, capacity) };
        }
        // SAFETY: the contract of this function.
        unsafe { pointers::write(count, written, "count") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Gives back what the fetch holds, whether all was delivered or not.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_end(fetch: *mut HypuraFetch) {
    // SAFETY: the contract of this function.
    if let Some(this) = unsafe { fetch.as_mut() } {
        guard_infallible((), || {
            this.delivered.clear();
            this.position = 0;
            this.fetch.end();
        });
    }
}

/// Keeps what hypura_fetch_next() has just delivered: it stays valid until hypura_fetch_release(), whatever is demanded with this fetch in
/// the meantime. A host that copies weights elsewhere need not wait for each copy then. What is kept is room that a demand may need: where
/// hypura_fetch_is_ready() says that hypura_fetch_next() would wait, release first.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_keep(fetch: *mut HypuraFetch) {
    // SAFETY: the contract of this function.
    if let Some(this) = unsafe { fetch.as_mut() } {
        guard_infallible((), || this.fetch.keep());
    }
}

/// Gives back what was kept.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), used by no other thread during the call; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_release(fetch: *mut HypuraFetch) {
    // SAFETY: the contract of this function.
    if let Some(this) = unsafe { fetch.as_mut() } {
        guard_infallible((), || this.fetch.release());
    }
}

/// Frees a fetch; what it held is given back.
///
/// # Safety
/// @param fetch from hypura_fetch_new(), not used any more and freed once; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_fetch_free(fetch: *mut HypuraFetch) {
    if !fetch.is_null() {
        // SAFETY: the contract of this function.
        let fetch = unsafe { Box::from_raw(fetch) };
        guard_infallible((), || drop(fetch));
    }
}

/// Writes as many blocks as there is room for; returns how many.
///
/// # Safety
/// `to` has room for `capacity` blocks.
unsafe fn write_blocks(blocks: &[Block], to: *mut HypuraBlock, capacity: usize) -> usize {
    let written = blocks.len().min(capacity);
    for (index, block) in blocks[..written].iter().enumerate() {
        let block = HypuraBlock { expert: block.expert.0 as u64, data: block.data.cast() };
        // SAFETY: `index < capacity`.
        unsafe { to.add(index).write(block) };
    }
    written
}
