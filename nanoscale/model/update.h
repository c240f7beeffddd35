// A whole update of a model: loss and gradients, clipping, AdamW and Muon.

struct Whole {  // as `whole_update.WholeRecord`
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

template <class T> void update(Whole* of) {
  step<T>(of->model, of->batch);
  if (of->batch->foreign) return;
  Scope part("optimizer");
  clip(of->tensors, of->clipped, of->most, &of->norm);
  adamw(of->stepped, of->adamw, of->beta1, of->beta2);
  if (of->matrices) muon(of->matrices, of->muon);
}
