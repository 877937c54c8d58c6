#include "threads.h"

#include <sched.h>
#include <unistd.h>

namespace tidewheel {
namespace {

constexpr int SPINS = 2000;         // some 60 microseconds
constexpr int PATIENT_SPINS = 200;  // before the processor is offered to a thread that may need it

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

inline uint32_t parts_of(uint64_t open) { return static_cast<uint32_t>(open); }

}  // namespace

Threads& Threads::shared() {
  // never destroyed: its threads sleep on it when the process ends
  static std::atomic<Threads*> crew{nullptr};
  static std::atomic<pid_t> owner{0};
  static std::mutex making;
  if (owner.load(std::memory_order_acquire) != getpid()) {
    std::lock_guard<std::mutex> lock(making);
    if (owner.load(std::memory_order_relaxed) != getpid()) {
      crew.store(new Threads, std::memory_order_relaxed);
      owner.store(getpid(), std::memory_order_release);
    }
  }
  return *crew.load(std::memory_order_relaxed);
}

Threads::Turn::Turn(Threads& crew, int count) : lock_(crew.turn_) {
  for (; crew.started_ < count; ++crew.started_) {
    std::thread([&crew, worker = crew.started_] { crew.stay(worker); }).detach();
  }
  crew.active_.store(count, std::memory_order_relaxed);
}

void Threads::distribute(int parts, Call call, void* context) {
  call_ = call;
  context_ = context;
  unfinished_.store(parts, std::memory_order_relaxed);
  uint64_t piece = (open_.load(std::memory_order_relaxed) >> 32) + 1;
  open_.store(piece << 32 | static_cast<uint32_t>(parts));
  if (asleep_.load() > 0) {
    std::lock_guard<std::mutex> lock(bed_);
    wake_.notify_all();
  }
  while (work_once(0)) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < PATIENT_SPINS)
      pause();
    else
      sched_yield();
  }
}

// Does one part, if one is open.
bool Threads::work_once(int worker) {
  uint64_t open = open_.load(std::memory_order_acquire);
  while (parts_of(open) > 0) {
    // succeeds only while this very piece of work is open, so what is read afterwards belongs to it
    if (open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      call_(context_, static_cast<int>(parts_of(open)) - 1, worker);
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
      return true;
    }
  }
  return false;
}

void Threads::stay(int worker) {
  auto is_wanted = [&] { return worker < active_.load(std::memory_order_relaxed) && parts_of(open_.load()) > 0; };
  for (;;) {
    for (int spins = 0; spins < SPINS; ++spins) {
      if (worker < active_.load(std::memory_order_relaxed) && work_once(worker))
        spins = 0;
      else
        pause();
    }
    asleep_.fetch_add(1);
    {
      std::unique_lock<std::mutex> lock(bed_);
      wake_.wait(lock, is_wanted);
    }
    asleep_.fetch_sub(1);
  }
}

}  // namespace tidewheel
