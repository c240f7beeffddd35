// A program of the kernels alone, for a CPU that is not this one: takes a model and a batch from a
// file (test_instruction_sets.py writes it), leaves the loss, the gradients and an evaluation's losses
// in another. Built with kernels.cpp included; by one thread.

#include KERNELS

#include <cstdio>
#include <string>

extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned, unsigned) { work(data); }
void GOMP_barrier() {}
int omp_get_max_threads() { return 1; }
int omp_get_num_threads() { return 1; }
int omp_get_thread_num() { return 0; }
int omp_in_parallel() { return 0; }
}

template <class T> std::vector<T> read(FILE* file, i64 n) {
  std::vector<T> values(n + 2 * W);  // a vector beyond the end may be read
  if ((i64)fread(values.data(), sizeof(T), n, file) != n) exit(3);
  return values;
}

template <class T> void run(const Model& model, Batch batch) {
  i64 bytes;
  step_room<T>(&model, &batch, &bytes);
  std::vector<char> room(bytes + 64);
  batch.room = (char*)(((uintptr_t)room.data() + 63) / 64 * 64);
  step<T>(&model, &batch);
}

int main(int count, char** names) {
  bool narrow = names[1][0] == 'b';
  for (int i = 2; i < count; i++) {
    FILE* file = fopen(names[i], "rb");
    auto model = read<Model>(file, 1);
    Model& m = model[0];
    auto sizes = read<i64>(file, 5);
    i64 slots = sizes[0], B = sizes[1], T = sizes[2], keys = sizes[3], rotary = sizes[4];
    auto elements = read<i64>(file, slots), offsets = read<i64>(file, slots);
    std::vector<std::vector<float>> weights;
    std::vector<float> found(m.parameters + 2 * W);
    std::vector<float*> tensors(slots), gradients(slots);
    for (i64 slot = 0; slot < slots; slot++) {
      weights.push_back(read<float>(file, elements[slot]));
      if (!elements[slot]) continue;
      tensors[slot] = weights[slot].data();
      gradients[slot] = found.data() + offsets[slot];
    }
    auto cos = read<float>(file, rotary), sin = read<float>(file, rotary);
    auto idx = read<i64>(file, B * T), targets = read<i64>(file, B * T), drawn = read<i64>(file, keys);
    fclose(file);

    m.cos = rotary ? cos.data() : nullptr;
    m.sin = rotary ? sin.data() : nullptr;
    m.tensors = tensors.data();
    m.gradients = gradients.data();
    float loss;
    std::vector<float> losses(B * T);
    Batch batch{B, T, idx.data(), targets.data(), keys ? drawn.data() : nullptr, &loss, nullptr};
    narrow ? run<bf16>(m, batch) : run<float>(m, batch);
    m.gradients = nullptr; m.z_loss = 0; batch.keys = nullptr; batch.loss = losses.data();
    narrow ? run<bf16>(m, batch) : run<float>(m, batch);

    file = fopen((std::string(names[i]) + ".found").c_str(), "wb");
    fwrite(&loss, 4, 1, file); fwrite(losses.data(), 4, B * T, file);
    fwrite(found.data(), 4, m.parameters, file);
    fclose(file);
  }
}
