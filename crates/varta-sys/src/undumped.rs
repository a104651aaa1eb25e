//! A value that no core dump contains.
//!
//! It lies on pages of its own that the kernel leaves out of dumps (`MADV_DONTDUMP`). Only those pages are left out:
//! copies of the value on the stack or in a buffer are dumped. A debugger, and any process that may read the memory
//! of this one, can still read the value.
//!
//! A page or more for each value: for a few secrets, not for many.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// The smallest page size. A mapping starts at a multiple of it.
const PAGE_BYTES_MIN: usize = 4096;

/// An owned value, or some in a row, on pages that are not dumped. Dropping it drops them and gives the pages back.
pub struct Undumped<T: ?Sized> {
    place: NonNull<T>,
}

// SAFETY: the pages belong to this value and to no thread, as those of a `Box` do.
unsafe impl<T: ?Sized + Send> Send for Undumped<T> {}
// SAFETY: a shared reference gives only a shared reference to the value.
unsafe impl<T: ?Sized + Sync> Sync for Undumped<T> {}

impl<T> Undumped<T> {
    /// Moves a value onto pages of its own. The place it was moved from is not wiped.
    ///
    /// # Errors
    ///
    /// The error of the kernel: no memory, or pages cannot be left out of a dump.
    pub fn new(value: T) -> io::Result<Self> {
        let place = map::<T>(1)?;
        // SAFETY: mapped for writing and aligned for one `T`, and holds no value yet that would have to be dropped.
        unsafe { place.write(value) };
        Ok(Self { place })
    }
}

impl<T> Undumped<[T]> {
    /// This many values in a row, each made in its final place.
    ///
    /// # Errors
    ///
    /// As [`Undumped::new`]; invalid input if they do not fit into the address space.
    pub fn row(length: usize, mut make: impl FnMut() -> T) -> io::Result<Self> {
        let first = map::<T>(length)?;
        for i in 0..length {
            let value = make();
            // SAFETY: `i` is less than the number of values that are mapped.
            let place = unsafe { first.add(i) };
            // SAFETY: mapped for writing and aligned, and nothing is there yet. If `make` panics, the mapping and what
            // was made so far are leaked.
            unsafe { place.write(value) };
        }
        Ok(Self {
            place: NonNull::slice_from_raw_parts(first, length),
        })
    }
}

/// How many bytes are mapped for values of this size; the kernel rounds up to whole pages.
const fn mapped_bytes(bytes: usize) -> usize {
    if bytes == 0 { 1 } else { bytes }
}

/// Zeroed pages for this many values, left out of dumps.
fn map<T>(count: usize) -> io::Result<NonNull<T>> {
    const { assert!(align_of::<T>() <= PAGE_BYTES_MIN) };
    let bytes = size_of::<T>()
        .checked_mul(count)
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let length = mapped_bytes(bytes);
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range is the mapping made above, which has no other user.
    if unsafe { libc::madvise(address, length, libc::MADV_DONTDUMP) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above; nothing refers to it.
        unsafe { libc::munmap(address, length) };
        return Err(error);
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

impl<T: ?Sized> Deref for Undumped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value was written when `self` was made and is dropped with it only; `&self` allows shared
        // access.
        unsafe { self.place.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for Undumped<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` is exclusive.
        unsafe { self.place.as_mut() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Undumped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> Drop for Undumped<T> {
    fn drop(&mut self) {
        let length = mapped_bytes(size_of_val::<T>(self));
        // SAFETY: the value exists, and there is no reference to it any more.
        unsafe { self.place.drop_in_place() };
        // SAFETY: the range is the mapping of this value, which has been dropped.
        unsafe { libc::munmap(self.place.as_ptr().cast(), length) };
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// The kernel's report about the mapping around an address.
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let bounds = range.and_then(|(from, to)| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some((number(from)?, number(to)?))
            });
            if let Some((from, to)) = bounds {
                is_it = (from..to).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags:")
                && is_it
            {
                return flags.to_owned();
            }
        }
        panic!("not mapped");
    }

    #[test]
    fn the_pages_of_a_value_are_left_out_of_dumps() {
        let secret = Undumped::new([7_u8; 32]).unwrap();
        let dumped = Box::new([7_u8; 32]);
        let is_left_out = |address: usize| flags_at(address).split(' ').any(|flag| flag == "dd");
        assert!(is_left_out(secret.as_ptr() as usize));
        assert!(!is_left_out(dumped.as_ptr() as usize));
    }

    #[test]
    fn a_value_can_be_changed_and_is_dropped_once() {
        let shared = Rc::new(5);
        let mut value = Undumped::new((Rc::clone(&shared), 1_u64)).unwrap();
        value.1 += 1;
        assert_eq!((*value.0, value.1), (5, 2));
        assert_eq!(Rc::strong_count(&shared), 2);
        drop(value);
        assert_eq!(Rc::strong_count(&shared), 1);
    }

    #[test]
    fn values_in_a_row_are_made_and_dropped_one_by_one() {
        let shared = Rc::new(5);
        let row = Undumped::row(3, || Rc::clone(&shared)).unwrap();
        assert_eq!((row.len(), Rc::strong_count(&shared)), (3, 4));
        drop(row);
        assert_eq!(Rc::strong_count(&shared), 1);
        assert!(Undumped::row(0, || 1_u8).unwrap().is_empty());
        assert!(Undumped::row(usize::MAX, || 1_u64).is_err());
    }

    #[test]
    fn values_of_every_size_have_a_place() {
        let nothing = Undumped::new(()).unwrap();
        assert_eq!(*nothing, ());
        let mut long = Undumped::new([0_u8; 3 * PAGE_BYTES_MIN + 1]).unwrap();
        *long.last_mut().unwrap() = 9;
        assert_eq!(long.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 9);
    }

    #[test]
    fn a_value_goes_with_its_owner_to_another_thread() {
        let value = Undumped::new(String::from("secret")).unwrap();
        let length = std::thread::spawn(move || value.len()).join().unwrap();
        assert_eq!(length, 6);
    }
}
