// A whole update: loss and gradients, clipping, AdamW and Muon; of one model by as many threads
// as its batch may take, or of several, each by one.

struct Member {  // as `whole_update.MemberRecord`
  const Model* model;
  Batch* batch;
  i64 tensors;  // all, whose gradients are clipped together
  const Update* clipped;
  i64 stepped;
  const Update* adamw;
  i64 matrices;
  const Matrix* muon;
  double beta1, beta2;
  float most;
  float norm;  // written: of all gradients, before clipping
};

template <class T> void update_one(Member& m) {
  step<T>(m.model, m.batch);
  if (m.batch->foreign) return;
  clip(m.tensors, m.clipped, m.most, &m.norm);
  adamw(m.stepped, m.adamw, m.beta1, m.beta2);
  if (m.matrices) muon(m.matrices, m.muon);
}
template <class T> void update(i64 count, Member* members) {
  if (count == 1 && members->batch->threads > 1) return update_one<T>(*members);
  std::atomic<i64> next{0};
  parallel([&] { take_turns(count, next, [=](i64 i) { update_one<T>(members[i]); }); });
}
