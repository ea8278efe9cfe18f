//! The contents of every map of the programs, byte by byte.

use aya::maps::{MapData, MapInfo, MapType};
use aya::programs::SchedClassifier;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _};

/// Keys and values of each map, by the map's name.
pub type Contents = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Returns the ids of the maps of a program.
pub fn maps_of(program: &SchedClassifier) -> BTreeSet<u32> {
    let maps = program.info().unwrap().map_ids().unwrap();
    maps.unwrap().into_iter().collect()
}

/// Reads maps.
pub fn read(ids: &BTreeSet<u32>) -> Contents {
    let infos = ids.iter().map(|id| MapInfo::from_id(*id).unwrap());
    infos
        // The buffer of the log has no entries.
        .filter(|info| info.map_type().unwrap() != MapType::RingBuf)
        .map(|info| {
            let name = info.name_as_str().unwrap().to_owned();
            (name, entries(&info))
        })
        .collect()
}

fn entries(info: &MapInfo) -> BTreeMap<Vec<u8>, Vec<u8>> {
    /// `enum bpf_cmd` in include/uapi/linux/bpf.h.
    const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
    const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
    let map = MapData::from_id(info.id()).unwrap();
    let fd = map.fd().as_fd().as_raw_fd();
    let per_cpu = matches!(
        info.map_type().unwrap(),
        MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash
    );
    let value_len = if per_cpu {
        let cpus = aya::util::nr_cpus().unwrap();
        info.value_size().next_multiple_of(8) as usize * cpus
    } else {
        info.value_size() as usize
    };
    let mut all = BTreeMap::new();
    let mut key: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; info.key_size() as usize];
        let before = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
        if !call(BPF_MAP_GET_NEXT_KEY, fd, before, next.as_mut_ptr() as u64) {
            return all;
        }
        let mut value = vec![0; value_len];
        let at = [next.as_ptr() as u64, value.as_mut_ptr() as u64];
        // An entry without a value has gone meanwhile.
        if call(BPF_MAP_LOOKUP_ELEM, fd, at[0], at[1]) {
            all.insert(next.clone(), value);
        }
        key = Some(next);
    }
}

/// Calls `bpf(2)`; returns false if there is no entry.
fn call(command: libc::c_int, fd: i32, key: u64, value: u64) -> bool {
    /// The member of `union bpf_attr` for elements of maps.
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Attr {
        map_fd: u32::try_from(fd).unwrap(),
        pad: 0,
        key,
        value,
        flags: 0,
    };
    // SAFETY: the pointers are to live buffers of the map's sizes.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Attr>()) };
    if status == 0 {
        return true;
    }
    let err = std::io::Error::last_os_error();
    assert_eq!(err.raw_os_error(), Some(libc::ENOENT), "{err}");
    false
}
