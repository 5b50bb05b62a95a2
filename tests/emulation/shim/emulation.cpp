// The scheduler of the emulation: one fiber a thread, blocks in turn, orders permuted by a seed.
// Compiled without the race detector, so that what it does itself is not seen as the kernels'
// doing.
#include "emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "sanitizers.h"
#include "visibility.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Saves the callee-saved registers and the stack pointer to *from, and goes on at `to`.
asm(R"(
.text
.globl diffreg_emulation_switch
diffreg_emulation_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  retq
)");
extern "C" void diffreg_emulation_switch(void** from, void* to);

namespace emulation {

int64_t grid_limit = 2147483647;
int64_t enough_tiles = 0;

namespace {

constexpr size_t kStack = 256 * 1024, kShared = 48 * 1024, kGap = 64, kArena = 2 * kShared;
constexpr int kWarp = 32;

enum class State { ready, at_barrier, in_exchange, finished };

struct Fiber {
  void* pointer = nullptr;  // its stack pointer while it does not run
  char* stack = nullptr;
  Switch context;
};

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::finished;
  Site site{};
  unsigned barriers = 0, exchanges = 0;
  char exchanged[16];
};

struct Traffic {
  std::string instance;  // the last one, mangled
  int64_t launches = 0, blocks = 0, threads = 0, shared = 0;
  int64_t loads = 0, stores = 0;                // bytes asked for
  int64_t load_sectors = 0, store_sectors = 0;  // 32 bytes each, once a block
};

struct Scheduler {
  std::vector<std::unique_ptr<Fiber>> pool;
  std::vector<Thread> threads;
  void* host = nullptr;
  Switch host_context;
  int current = 0;
  const std::function<void()>* body = nullptr;
  std::mt19937 random;
  unsigned seed = 0;
  bool counting = false;

  std::vector<char*> arenas;
  char* arena = nullptr;
  size_t used = 0;
  // Shared variables of the block. An array: a thread must not allocate, detectors would see it.
  std::array<std::pair<const void*, void*>, 32> variables;
  size_t variable_count = 0;

  std::unordered_set<uintptr_t> loaded, stored;
  std::map<std::string, Traffic> traffic;
  Traffic* counts = nullptr;
  Tokens tokens;
  Visibility visibility;
  bool unseen = false;      // a block has read what it need not see
  bool misaligned = false;  // a thread has stopped before an access that no GPU makes
} machine;

void resume(int index) {
  machine.current = index;
  const unsigned row = index / blockDim.x;
  threadIdx = {index % blockDim.x, row % blockDim.y, row / blockDim.y};
  Fiber& fiber = *machine.threads[index].fiber;
  machine.host_context.leave_for(fiber.context, fiber.stack, kStack);
  diffreg_emulation_switch(&machine.host, fiber.pointer);
  machine.host_context.arrive();
}

void park(State state, Site site) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  thread.site = site;
  thread.fiber->context.leave_for_host(machine.host_context);
  diffreg_emulation_switch(&thread.fiber->pointer, machine.host);
  machine.threads[machine.current].fiber->context.arrive();
}

void fiber_main() {
  machine.threads[machine.current].fiber->context.arrive();
  for (;;) {
    machine.tokens.acquire_start();
    (*machine.body)();
    machine.tokens.release_end();
    park(State::finished, {});
  }
}

std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = static_cast<char*>(
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (fiber->stack == MAP_FAILED) throw std::runtime_error("emulation: no memory for a fiber");
  void** top = reinterpret_cast<void**>(fiber->stack + kStack) - 1;
  *top = nullptr;  // fiber_main never returns
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  fiber->pointer = top;
  fiber->context.create();
  return fiber;
}

std::string place(const Thread& thread, size_t index) {
  const std::string who = "thread " + std::to_string(index);
  if (thread.state == State::finished) return who + " has returned";
  return who + " waits at " + thread.site.file + ":" + std::to_string(thread.site.line);
}

// Fibers that never came to their end cannot be used again.
[[noreturn]] void give_up(const std::string& text) {
  for (Thread& thread : machine.threads) thread.fiber = nullptr;
  for (auto& fiber : machine.pool) fiber.release();
  machine.pool.clear();
  throw std::runtime_error(text);
}

[[noreturn]] void stuck(const char* kernel, size_t a, size_t b) {
  give_up(std::string("barrier divergence in ") + kernel + ": " + place(machine.threads[a], a) +
          ", " + place(machine.threads[b], b));
}

bool together(const Thread& a, const Thread& b) {
  return a.state == b.state && a.site.line == b.site.line && a.site.file == b.site.file;
}

// Lets a warp go on when all its lanes have come to the same shuffle.
bool release_warps() {
  bool released = false;
  for (size_t first = 0; first < machine.threads.size(); first += kWarp) {
    const size_t end = std::min(first + kWarp, machine.threads.size());
    bool whole = true;
    for (size_t k = first; k < end; ++k) {
      whole &= machine.threads[k].state == State::in_exchange &&
               together(machine.threads[k], machine.threads[first]);
    }
    if (!whole) continue;
    for (size_t k = first; k < end; ++k) machine.threads[k].state = State::ready;
    released = true;
  }
  return released;
}

void release_block(const char* kernel) {
  const Thread& first = machine.threads[0];
  for (size_t k = 1; k < machine.threads.size(); ++k) {
    if (!together(machine.threads[k], first)) stuck(kernel, 0, k);
  }
  // All at one shuffle, but not with their warps, cannot be.
  if (first.state != State::at_barrier) stuck(kernel, 0, 0);
  for (Thread& thread : machine.threads) thread.state = State::ready;
}

void open_block(int64_t block, size_t count) {
  blockIdx = {static_cast<unsigned>(block), 0, 0};
  if (machine.arenas.empty() || Tokens::kFreshArena) {
    machine.arenas.push_back(static_cast<char*>(std::malloc(kArena + Tokens::kBytes)));
  }
  machine.arena = machine.arenas.back();
  unpoison(machine.arena, kArena);
  std::memset(machine.arena, 0xff, kArena);
  poison(machine.arena, kArena);
  machine.used = kGap;
  machine.tokens.open_block(machine.arena + kArena);
  machine.visibility.open_block(block);
  machine.variable_count = 0;
  while (machine.pool.size() < count) machine.pool.push_back(make_fiber());
  machine.threads.assign(count, Thread());
  for (size_t k = 0; k < count; ++k) {
    // Another fiber for the same thread of the next block: its past must not hide a race.
    machine.threads[k].fiber = machine.pool[(k + 17 * block) % count].get();
    machine.threads[k].state = State::ready;
  }
  machine.tokens.release_start();
}

void close_block() {
  Traffic& counts = *machine.counts;
  counts.shared = std::max<int64_t>(counts.shared, machine.used - kGap);
  counts.load_sectors += machine.loaded.size();
  counts.store_sectors += machine.stored.size();
  machine.loaded.clear();
  machine.stored.clear();
}

void run_block(const char* kernel, int64_t block, size_t count) {
  open_block(block, count);
  std::vector<int> order(count);
  for (size_t k = 0; k < count; ++k) order[k] = static_cast<int>(k);
  for (;;) {
    if (machine.seed) std::shuffle(order.begin(), order.end(), machine.random);
    bool ran = false;
    for (int index : order) {
      if (machine.threads[index].state != State::ready) continue;
      resume(index);
      if (machine.misaligned) {
        machine.misaligned = false;
        give_up(std::string("an access that is not aligned in ") + kernel);
      }
      ran = true;
    }
    if (release_warps() || ran) continue;
    const auto done = [](const Thread& t) { return t.state == State::finished; };
    if (std::all_of(machine.threads.begin(), machine.threads.end(), done)) break;
    release_block(kernel);
  }
  close_block();
  if (!machine.unseen) return;
  machine.unseen = false;
  throw std::runtime_error(
      std::string("a block reads another's store without a fence between in ") + kernel);
}

void close_launch() {
  machine.tokens.acquire_end();
  if (!Tokens::kFreshArena) return;
  for (char* arena : machine.arenas) std::free(arena);
  machine.arenas.clear();
}

// Without memcpy, which detectors see.
void copy(void* to, const void* from, size_t bytes) {
  if (bytes == 4) {
    __builtin_memcpy(to, from, 4);
  } else {
    __builtin_memcpy(to, from, 8);
  }
}

void mark(std::unordered_set<uintptr_t>& sectors, const void* address, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(address) / 32;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(address) + bytes - 1) / 32;
  for (uintptr_t sector = first; sector <= last; ++sector) sectors.insert(sector);
}

// "<stem of the file>/<kernel>", without parentheses and template arguments.
std::string name_of(std::string file, std::string kernel) {
  file = file.substr(file.rfind('/') + 1);
  kernel = kernel.substr(kernel[0] == '(');
  return file.substr(0, file.find('.')) + "/" + kernel.substr(0, kernel.find('<'));
}

}  // namespace

void launch(const Kernel& launched, int64_t blocks, dim3 threads,
            const std::function<void()>& body) {
  const std::string name = name_of(launched.file, launched.text);
  const char* kernel = name.c_str();
  const size_t count = size_t(threads.x) * threads.y * threads.z;
  if (blocks < 1 || blocks > grid_limit || count % kWarp != 0 || count > 1024) {
    throw std::runtime_error(std::string("emulation: invalid launch of ") + kernel);
  }
  blockDim = threads;
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  machine.body = &body;
  machine.random.seed(machine.seed);
  machine.counts = &machine.traffic[kernel];
  machine.counts->launches += 1;
  machine.counts->instance = launched.instance;
  machine.counts->blocks += blocks;
  machine.counts->threads = count;
  std::vector<int64_t> order(blocks);
  for (int64_t k = 0; k < blocks; ++k) order[k] = k;
  if (machine.seed) std::shuffle(order.begin(), order.end(), machine.random);
  machine.visibility.open_launch();
  for (int64_t block : order) run_block(kernel, block, count);
  close_launch();
}

void fill(void* memory, int value, size_t bytes) {
  machine.traffic["memset"].launches += 1;
  machine.traffic["memset"].stores += bytes;
  std::memset(memory, value, bytes);
}

void barrier(Site site) {
  Thread& thread = machine.threads[machine.current];
  const int token = thread.barriers++ % 2;
  machine.tokens.release_block(token);
  park(State::at_barrier, site);
  machine.tokens.acquire_block(token);
}

void fence() {
  machine.tokens.fence();
  machine.visibility.fence();
}

int lane() { return machine.current % kWarp; }

void exchange(void* value, size_t bytes, int source, Site site) {
  const int own = machine.current, warp = own / kWarp;
  Thread& thread = machine.threads[own];
  copy(thread.exchanged, value, bytes);
  const int token = thread.exchanges++ % 2;
  machine.tokens.release_warp(warp, token);
  park(State::in_exchange, site);
  machine.tokens.acquire_warp(warp, token);
  if (source < kWarp) copy(value, machine.threads[warp * kWarp + source].exchanged, bytes);
  park(State::in_exchange, site);  // no lane overwrites its value before all have read it
}

void* shared(const void* variable, size_t bytes) {
  for (size_t k = 0; k < machine.variable_count; ++k) {
    if (machine.variables[k].first == variable) return machine.variables[k].second;
  }
  const size_t whole = (bytes + 15) / 16 * 16;
  if (machine.used - kGap + whole > kShared) {
    throw std::runtime_error("emulation: more than 48 KiB of shared memory");
  }
  void* memory = machine.arena + machine.used;
  machine.variables.at(machine.variable_count++) = {variable, memory};
  unpoison(memory, bytes);
  machine.used += whole + (kPoisons ? kGap : 0);
  return memory;
}

namespace {

// A GPU loads and stores 16 bytes, and 8, 4 and 2, at multiples of them alone; larger types in
// parts. The processor might not mind, or end the process.
void stop_if_misaligned(const void* address, size_t bytes) {
  const size_t unit = std::min<size_t>(bytes & -bytes, 16);
  if (reinterpret_cast<uintptr_t>(address) % unit == 0) return;
  machine.misaligned = true;
  park(State::finished, {});
}

void mark_load(const void* address, size_t bytes) {
  if (!machine.counting) return;
  machine.counts->loads += bytes;
  mark(machine.loaded, address, bytes);
}

void mark_store(const void* address, size_t bytes) {
  if (!machine.counting) return;
  machine.counts->stores += bytes;
  mark(machine.stored, address, bytes);
}

}  // namespace

void count_load(const void* address, size_t bytes) {
  stop_if_misaligned(address, bytes);
  machine.unseen |= !machine.visibility.sees(address);
  mark_load(address, bytes);
}

void count_store(const void* address, size_t bytes) {
  stop_if_misaligned(address, bytes);
  machine.visibility.store(address);
  mark_store(address, bytes);
}

void count_atomic(const void* address, size_t bytes) {
  const char* at = static_cast<const char*>(address);
  // In shared memory it is no traffic, and no other block learns of it.
  if (machine.arena <= at && at < machine.arena + kArena) return;
  machine.visibility.atomic();
  mark_load(address, bytes);
  mark_store(address, bytes);
}

}  // namespace emulation

void emulation_set(unsigned seed, int64_t grid_limit, int64_t enough_tiles, int counting) {
  emulation::machine.seed = seed;
  emulation::grid_limit = grid_limit;
  emulation::enough_tiles = enough_tiles;
  emulation::machine.counting = counting != 0;
  emulation::machine.traffic.clear();
}

// What they read.
extern "C" __attribute__((visibility("default"))) const char* emulation_report() {
  static std::string text;
  text = "{";
  for (const auto& [kernel, t] : emulation::machine.traffic) {
    const auto field = [&](const char* name, int64_t value) {
      text += std::string(", \"") + name + "\": " + std::to_string(value);
    };
    text += (text.size() > 1 ? ", \"" : "\"") + kernel + "\": {\"launches\": ";
    text += std::to_string(t.launches);
    field("blocks", t.blocks);
    field("threads", t.threads);
    field("shared", t.shared);
    field("loads", t.loads);
    field("stores", t.stores);
    field("load_sectors", t.load_sectors);
    field("store_sectors", t.store_sectors);
    text += ", \"instance\": \"" + t.instance + "\"}";
  }
  text += "}";
  return text.c_str();
}
