// The Python module _kernels; _kernels.pyi describes it. Addresses come as integers and belong to the caller, who keeps
// the memory alive. Nothing is checked here that native.py knows already.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <exception>
#include <memory>

#include "decoder.h"

namespace {

using namespace tidewheel;

constexpr const char* CAPSULE = "tidewheel.decoder";
using Address = unsigned long long;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

bool runs_here(const Kernels* kernels) {
  if (!kernels) return false;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (kernels == AVX2) return avx2;
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni");
  if (kernels == AVX512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const Kernels* const ALL[] = {AVX512_BF16, AVX512, AVX2};

const Kernels* kernels_named(const char* name) {
  for (const Kernels* kernels : ALL)
    if (runs_here(kernels) && std::strcmp(kernels->name, name) == 0) return kernels;
  PyErr_Format(PyExc_ValueError, "the kernels %s are not built, or this processor lacks their instructions", name);
  return nullptr;
}

Decoder* decoder_of(PyObject* capsule) { return static_cast<Decoder*>(PyCapsule_GetPointer(capsule, CAPSULE)); }

// Runs `work` without Python's lock; an exception becomes Python's.
template <class Work>
PyObject* released(Work&& work) {
  std::exception_ptr failure;
  Py_BEGIN_ALLOW_THREADS;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  Py_END_ALLOW_THREADS;
  if (!failure) Py_RETURN_NONE;
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* instruction_sets(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const Kernels* kernels : ALL) {
    if (!names || !runs_here(kernels)) continue;
    PyObject* name = PyUnicode_FromString(kernels->name);
    if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* packed_bytes(PyObject*, PyObject* args) {
  int kind, rows, columns;
  if (!PyArg_ParseTuple(args, "iii", &kind, &rows, &columns)) return nullptr;
  size_t panels = static_cast<size_t>(round_up(rows, PAIR) / LANES);
  return PyLong_FromSize_t(panels * panel_bytes(static_cast<Kind>(kind), columns));
}

PyObject* pack(PyObject*, PyObject* args) {
  const char* name;
  int kind, rows, columns, first, half;
  Address source, target;
  if (!PyArg_ParseTuple(args, "siKiiKii", &name, &kind, &source, &rows, &columns, &target, &first, &half)) return nullptr;
  const Kernels* kernels = kernels_named(name);
  if (!kernels) return nullptr;
  return released([&] {
    size_t bytes = panel_bytes(static_cast<Kind>(kind), columns);
    for (int i = 0; i < rows; ++i) {
      int row = first + i;
      if (half >= 0) row = row / LANES * PAIR + half * LANES + row % LANES;
      kernels->pack_row[kind](at<float>(source) + static_cast<ptrdiff_t>(i) * columns, columns,
                              at<uint8_t>(target) + static_cast<size_t>(row / LANES) * bytes, row % LANES);
    }
  });
}

PyObject* unpack(PyObject*, PyObject* args) {
  const char* name;
  int kind, rows, columns;
  Address source, target;
  if (!PyArg_ParseTuple(args, "siKiiK", &name, &kind, &source, &rows, &columns, &target)) return nullptr;
  const Kernels* kernels = kernels_named(name);
  if (!kernels) return nullptr;
  return released([&] {
    size_t bytes = panel_bytes(static_cast<Kind>(kind), columns);
    for (int row = 0; row < rows; ++row)
      kernels->unpack_row[kind](at<uint8_t>(source) + static_cast<size_t>(row / LANES) * bytes, row % LANES, columns,
                                at<float>(target) + static_cast<ptrdiff_t>(row) * columns);
  });
}

PyObject* multiply(PyObject*, PyObject* args) {
  const char* name;
  int kind, rows, columns, outputs;
  Address input, packed, output;
  if (!PyArg_ParseTuple(args, "siKiiKiK", &name, &kind, &input, &rows, &columns, &packed, &outputs, &output))
    return nullptr;
  const Kernels* kernels = kernels_named(name);
  if (!kernels) return nullptr;
  return released([&] {
    int padded = packed_columns(static_cast<Kind>(kind), columns);
    size_t count = static_cast<size_t>(rows), blocks = static_cast<size_t>(padded / BLOCK + 1);
    Buffer<uint8_t> values;
    Buffer<float> scales, row;
    Buffer<int32_t> offsets;
    Inputs in{values.reserve(count * static_cast<size_t>(padded) * 4), scales.reserve(count * blocks),
              offsets.reserve(count * blocks), padded};
    float* spare = row.reserve(static_cast<size_t>(round_up(padded, BLOCK)));
    for (int i = 0; i < rows; ++i) {
      std::memcpy(spare, at<float>(input) + static_cast<ptrdiff_t>(i) * columns, sizeof(float) * static_cast<size_t>(columns));
      kernels->convert[kind](spare, in, i);
    }
    Matrix w{at<uint8_t>(packed), outputs, columns};
    kernels->multiply[kind](in, w, {at<float>(output), outputs, outputs, Store::set}, 0, rows, 0, w.pairs());
  });
}

PyObject* decoder(PyObject*, PyObject* args) {
  const char* name;
  int weights, pool;
  Shape shape;
  if (!PyArg_ParseTuple(args, "siiiiiiiiif", &name, &weights, &pool, &shape.layers, &shape.hidden, &shape.feed_forward,
                        &shape.heads, &shape.kv_heads, &shape.head_dim, &shape.vocab, &shape.norm_epsilon))
    return nullptr;
  const Kernels* kernels = kernels_named(name);
  if (!kernels) return nullptr;
  std::unique_ptr<Decoder> made;
  try {
    made = std::make_unique<Decoder>(shape, *kernels, static_cast<Kind>(weights), static_cast<Kind>(pool));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  PyObject* capsule = PyCapsule_New(made.get(), CAPSULE, [](PyObject* self) { delete decoder_of(self); });
  if (capsule) made.release();
  return capsule;
}

PyObject* set_layer(PyObject*, PyObject* args) {
  PyObject* capsule;
  int index;
  Address attention_norm, qkv, attention_out, feed_forward_norm, gate_up, down;
  if (!PyArg_ParseTuple(args, "OiKKKKKK", &capsule, &index, &attention_norm, &qkv, &attention_out, &feed_forward_norm,
                        &gate_up, &down))
    return nullptr;
  Decoder* made = decoder_of(capsule);
  if (!made) return nullptr;
  Shape s = made->shape();
  int queries = s.heads * s.head_dim;
  Layer layer;
  layer.attention_norm = at<float>(attention_norm);
  layer.qkv = {at<uint8_t>(qkv), queries + 2 * s.kv_heads * s.head_dim, s.hidden};
  layer.attention_out = {at<uint8_t>(attention_out), s.hidden, queries};
  layer.feed_forward_norm = at<float>(feed_forward_norm);
  layer.gate_up = {at<uint8_t>(gate_up), 2 * round_up(s.feed_forward, LANES), s.hidden};
  layer.down = {at<uint8_t>(down), s.hidden, s.feed_forward};
  return released([&] { made->set_layer(index, layer); });
}

PyObject* set_ends(PyObject*, PyObject* args) {
  PyObject* capsule;
  Address embedding, norm, head, turns;
  if (!PyArg_ParseTuple(args, "OKKKK", &capsule, &embedding, &norm, &head, &turns)) return nullptr;
  Decoder* made = decoder_of(capsule);
  if (!made) return nullptr;
  Shape s = made->shape();
  made->set_ends({at<uint8_t>(embedding), s.vocab, s.hidden}, at<float>(norm), {at<uint8_t>(head), s.vocab, s.hidden},
                 at<float>(turns));
  Py_RETURN_NONE;
}

PyObject* begin(PyObject*, PyObject* args) {
  PyObject *capsule, *list;
  Address tokens;
  int threads;
  if (!PyArg_ParseTuple(args, "OKO!i", &capsule, &tokens, &PyList_Type, &list, &threads)) return nullptr;
  Decoder* made = decoder_of(capsule);
  if (!made) return nullptr;
  std::vector<Segment> segments;
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    Address rows;
    Segment segment;
    if (!PyArg_ParseTuple(PyList_GetItem(list, i), "Kii", &rows, &segment.start, &segment.tokens)) return nullptr;
    segment.rows = at<int64_t>(rows);
    segments.push_back(segment);
  }
  return released([&] { made->begin(at<int64_t>(tokens), segments, threads); });
}

PyObject* run_layers(PyObject*, PyObject* args) {
  PyObject* capsule;
  int first, last, threads;
  Address pool;
  long long pool_rows;
  if (!PyArg_ParseTuple(args, "OiiKLi", &capsule, &first, &last, &pool, &pool_rows, &threads)) return nullptr;
  Decoder* made = decoder_of(capsule);
  if (!made) return nullptr;
  return released([&] { made->run_layers(first, last, at<uint8_t>(pool), pool_rows, threads); });
}

PyObject* finish(PyObject*, PyObject* args) {
  PyObject* capsule;
  Address logits;
  int threads;
  if (!PyArg_ParseTuple(args, "OKi", &capsule, &logits, &threads)) return nullptr;
  Decoder* made = decoder_of(capsule);
  if (!made) return nullptr;
  return released([&] { made->finish(at<float>(logits), threads); });
}

PyMethodDef METHODS[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS, nullptr},
    {"packed_bytes", packed_bytes, METH_VARARGS, nullptr},
    {"pack", pack, METH_VARARGS, nullptr},
    {"unpack", unpack, METH_VARARGS, nullptr},
    {"multiply", multiply, METH_VARARGS, nullptr},
    {"decoder", decoder, METH_VARARGS, nullptr},
    {"set_layer", set_layer, METH_VARARGS, nullptr},
    {"set_ends", set_ends, METH_VARARGS, nullptr},
    {"begin", begin, METH_VARARGS, nullptr},
    {"run_layers", run_layers, METH_VARARGS, nullptr},
    {"finish", finish, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&MODULE); }
