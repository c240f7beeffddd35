// OpenMP as ThreadSanitizer can see it. GCC's own run-time waits by futexes, which are no
// synchronisation to the sanitizer: it calls every barrier a race. Here a region is threads that are
// started and joined, and a barrier is pthread's, all of which it knows.

#include <pthread.h>

#include <vector>

namespace {

constexpr int THREADS = 4;
thread_local int mine = 0;
thread_local int team = 1;
pthread_barrier_t* barrier = nullptr;

struct Task {
  void (*work)(void*);
  void* data;
  int number;
};

void* run(void* argument) {
  Task* task = static_cast<Task*>(argument);
  mine = task->number;
  team = THREADS;
  task->work(task->data);
  return nullptr;
}

}  // namespace

extern "C" {

int omp_get_max_threads() { return THREADS; }
int omp_get_num_threads() { return team; }
int omp_in_parallel() { return team > 1; }
int omp_get_thread_num() { return mine; }
void GOMP_barrier() { pthread_barrier_wait(barrier); }

void GOMP_parallel(void (*work)(void*), void* data, unsigned, unsigned) {
  pthread_barrier_t all;
  pthread_barrier_init(&all, nullptr, THREADS);
  barrier = &all;
  std::vector<Task> tasks;
  for (int i = 0; i < THREADS; i++) tasks.push_back({work, data, i});
  std::vector<pthread_t> threads(THREADS);
  for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], nullptr, run, &tasks[i]);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], nullptr);
  pthread_barrier_destroy(&all);
}

}  // extern "C"
