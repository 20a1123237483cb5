// Allocator for CPU tensors: a `c10::Allocator` of PyTorch over one address range that grows.
//
// A training step allocates the same few hundred pieces again and again. PyTorch takes them from the C library with an
// alignment, and glibc serves an aligned request from a gap that is longer than the piece itself. So a piece does not
// fit into the gap that a piece of its own size left, and the heap grows past the memory in use (benchmarks/arena.py).
// Here all sizes are multiples of the alignment, so that it fits. The smallest gap that is large enough is taken,
// neighboring gaps are merged, and pages stay resident until `arena_trim`, so that a step causes no page faults.
// `planner.allocators.Arena` simulates the same policy.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

#ifndef MAP_FIXED_NOREPLACE  // Linux 4.17
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace {

constexpr size_t ALIGNED = 64;
constexpr size_t GROWTH = size_t{64} << 20;  // bytes of address space per growth; a page uses memory once it is written
constexpr size_t APART = size_t{1} << 30;    // pieces from this size on get a mapping of their own, unmapped when freed
constexpr uintptr_t FIRST = uintptr_t{16} << 40, ELSEWHERE = uintptr_t{4} << 40;  // addresses that nothing else uses
constexpr int PLACES = 16;

// Precedes each piece and each gap.
struct alignas(ALIGNED) Header {
  size_t size;    // bytes of the piece or gap that follows
  Header* before; // header of the previous neighbor; null for the first of a range
  enum : uint32_t { GAP, TAKEN, ALONE, END } state;

  char* data() { return reinterpret_cast<char*>(this + 1); }
  Header* after() { return reinterpret_cast<Header*>(data() + size); }
  static Header* of(void* data) { return static_cast<Header*>(data) - 1; }
};
static_assert(sizeof(Header) == ALIGNED);

class Arena final : public c10::Allocator {
 public:
  std::mutex lock;

  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : take(bytes);
    return {data, data, &give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Returns the pages of gaps to the system; they read as zeros when they are used again. Addresses behind the last
  // piece are unmapped.
  void trim() {
    std::lock_guard<std::mutex> guard(lock);
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    shorten(page);
    for (auto& [size, gap] : gaps_) {
      uintptr_t start = (reinterpret_cast<uintptr_t>(gap->data()) + page - 1) / page * page;
      uintptr_t end = reinterpret_cast<uintptr_t>(gap->after()) / page * page;
      if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
    }
  }

 private:
  std::set<std::pair<size_t, Header*>> gaps_;
  Header* end_ = nullptr;  // of the range that grows
  int64_t held_ = 0;      // bytes of allocated pieces

  void* take(size_t bytes);
  Header* alone(size_t size);
  bool grow(size_t size);
  void shorten(uintptr_t page);
  void* stretch(size_t size);
  void count(Header* piece, bool comes);
  void put(Header* gap);
  static void give(void* data);
};

Arena& arena() {
  static Arena* made = new Arena;  // never destroyed: tensors may outlive everything
  return *made;
}

void* Arena::take(size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  TORCH_CHECK(bytes <= SIZE_MAX / 2, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes.");
  const size_t size = (bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
  Header* piece = nullptr;
  if (size >= APART) {
    piece = alone(size);
  } else {
    auto found = gaps_.lower_bound({size, nullptr});
    // The last gap, which ends where the range ends, is used only if no other gap fits.
    if (found != gaps_.end() && found->second->after() == end_ && std::next(found) != gaps_.end()) ++found;
    if (found == gaps_.end() && grow(size)) found = gaps_.lower_bound({size, nullptr});
    if (found != gaps_.end()) {
      piece = found->second;
      gaps_.erase(found);
      if (piece->size > size + sizeof(Header)) {
        const size_t left = piece->size - size - sizeof(Header);
        piece->size = size;
        Header* rest = piece->after();
        rest->size = left;
        rest->before = piece;
        rest->state = Header::GAP;
        rest->after()->before = rest;
        gaps_.insert({left, rest});
      }
      piece->state = Header::TAKEN;
    }
  }
  TORCH_CHECK(piece, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes.");
  count(piece, true);
  return piece->data();
}

void Arena::give(void* data) {
  if (data == nullptr) return;
  Arena& own = arena();
  std::lock_guard<std::mutex> guard(own.lock);
  Header* piece = Header::of(data);
  own.count(piece, false);
  if (piece->state == Header::ALONE) {
    munmap(piece, piece->size + sizeof(Header));
    return;
  }
  own.put(piece);
}

// Inserts a gap, merged with its neighbors if they are gaps too.
void Arena::put(Header* gap) {
  gap->state = Header::GAP;
  Header* after = gap->after();
  if (after->state == Header::GAP) {
    gaps_.erase({after->size, after});
    gap->size += sizeof(Header) + after->size;
  }
  Header* before = gap->before;
  if (before != nullptr && before->state == Header::GAP) {
    gaps_.erase({before->size, before});
    before->size += sizeof(Header) + gap->size;
    gap = before;
  }
  gap->after()->before = gap;
  gaps_.insert({gap->size, gap});
}

void Arena::count(Header* piece, bool comes) {
  const int64_t size = static_cast<int64_t>(piece->size + sizeof(Header)) * (comes ? 1 : -1);
  held_ += size;
  if (c10::memoryProfilingEnabled()) {
    c10::reportMemoryUsageToProfiler(piece->data(), size, held_, 0, c10::Device(c10::DeviceType::CPU));
  }
}

Header* Arena::alone(size_t size) {
  void* at = mmap(nullptr, size + sizeof(Header), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  madvise(at, size + sizeof(Header), MADV_HUGEPAGE);
  Header* piece = static_cast<Header*>(at);
  piece->size = size;
  piece->before = nullptr;
  piece->state = Header::ALONE;
  return piece;
}

// Makes room for a piece of that size behind the last one; false if the system refuses.
bool Arena::grow(size_t size) {
  const size_t page = sysconf(_SC_PAGESIZE);
  const size_t least = (size + 3 * sizeof(Header) + page - 1) / page * page;
  for (size_t length : {(least + GROWTH - 1) / GROWTH * GROWTH, least}) {
    char* at = static_cast<char*>(stretch(length));
    if (at == nullptr) continue;
    madvise(at, length, MADV_HUGEPAGE);
    Header* gap;
    if (end_ != nullptr && at == reinterpret_cast<char*>(end_ + 1)) {
      gap = end_;
    } else {
      gap = reinterpret_cast<Header*>(at);
      gap->before = nullptr;
    }
    Header* end = reinterpret_cast<Header*>(at + length) - 1;
    gap->size = reinterpret_cast<char*>(end) - gap->data();
    end->size = 0;
    end->before = gap;
    end->state = Header::END;
    end_ = end;
    put(gap);
    return true;
  }
  return false;
}

// Shortens the last gap to its first page.
void Arena::shorten(uintptr_t page) {
  Header* gap = end_ == nullptr ? nullptr : end_->before;
  if (gap == nullptr || gap->state != Header::GAP) return;
  const uintptr_t least = reinterpret_cast<uintptr_t>(gap->data()) + ALIGNED + sizeof(Header);
  char* edge = reinterpret_cast<char*>((least + page - 1) / page * page);
  char* last = reinterpret_cast<char*>(end_ + 1);
  if (edge >= last) return;
  gaps_.erase({gap->size, gap});
  munmap(edge, last - edge);
  end_ = reinterpret_cast<Header*>(edge) - 1;
  end_->size = 0;
  end_->state = Header::END;
  gap->size = reinterpret_cast<char*>(end_) - gap->data();
  put(gap);
}

// Maps addresses directly behind the current range, or elsewhere if they are taken.
void* Arena::stretch(size_t length) {
  constexpr int kind = MAP_PRIVATE | MAP_ANONYMOUS, use = PROT_READ | PROT_WRITE;
  if (end_ != nullptr) {
    void* wanted = end_ + 1;
    void* at = mmap(wanted, length, use, kind | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == wanted) return at;
    if (at != MAP_FAILED) munmap(at, length);
  }
  for (int place = 0; place < PLACES; ++place) {
    void* wanted = reinterpret_cast<void*>(FIRST + place * ELSEWHERE);
    void* at = mmap(wanted, length, use, kind | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == wanted) return at;
    if (at != MAP_FAILED) munmap(at, length);
  }
  void* at = mmap(nullptr, length, use, kind, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
}

}  // namespace

extern "C" {

// Makes PyTorch allocate new CPU tensors here (1) or with the allocator it had before (0). Existing tensors stay where
// they are.
void arena_use(int here) {
  static const int at_fork = pthread_atfork(
      [] { arena().lock.lock(); }, [] { arena().lock.unlock(); }, [] { arena().lock.unlock(); });
  TORCH_CHECK(at_fork == 0);
  static c10::Allocator* before = c10::GetDefaultCPUAllocator();
  c10::Allocator* now = c10::GetAllocator(c10::DeviceType::CPU);
  if (now != &arena()) before = now;
  c10::SetAllocator(c10::DeviceType::CPU, here ? &arena() : before, 255);
}

void arena_trim() { arena().trim(); }

}  // extern "C"
