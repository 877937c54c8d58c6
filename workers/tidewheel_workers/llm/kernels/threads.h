// Threads that share the parts of one piece of work after another, with microseconds between the pieces.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tidewheel {

// Parts are claimed one by one, and a piece of work is done when all its parts are: a thread that the system has put
// aside holds up at most the part it is in, so that processes may share processors. Waiting threads spin for some tens
// of microseconds, which covers the pauses inside a forward pass, and sleep afterwards.
class Threads {
 public:
  // The one crew of this process; a forked child gets its own, as threads do not survive a fork.
  static Threads& shared();

  // Claimed for a whole forward pass; others wait. `count` includes the thread that calls.
  class Turn {
   public:
    Turn(Threads& crew, int count);
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    std::unique_lock<std::mutex> lock_;
  };

  int count() const { return active_.load(std::memory_order_relaxed); }
  // One more than the largest number of a worker; some may be above `count`, late from an earlier turn.
  int workers() const { return started_; }

  // Calls work(part, worker) for every part in [0, parts), from the last to the first, and returns when all are done.
  // Workers are numbered from 0, the caller; no two parts run on the same worker at once.
  template <class Work>
  void run(int parts, Work&& work) {
    if (parts < 2 || count() < 2) {
      for (int part = parts; part-- > 0;) work(part, 0);
      return;
    }
    distribute(parts, [](void* context, int part, int worker) { (*static_cast<Work*>(context))(part, worker); }, &work);
  }

 private:
  using Call = void (*)(void* context, int part, int worker);

  void distribute(int parts, Call call, void* context);
  bool work_once(int worker);
  void stay(int worker);

  std::mutex turn_;
  std::atomic<uint64_t> open_{0};  // number of the piece of work in the upper half, parts not yet claimed in the lower
  std::atomic<int> unfinished_{0};
  std::atomic<int> active_{1};
  std::atomic<int> asleep_{0};
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::mutex bed_;
  std::condition_variable wake_;
  int started_ = 1;
};

}  // namespace tidewheel
