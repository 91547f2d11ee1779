#include "quant/model/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read in place");

constexpr size_t kLengthBytes = 8;                           // of the header's length field
constexpr JsonLimits kHeaderLimits = {.bytes = 100'000'000,  // as the safetensors package
                                      .values = size_t{2} << 20,
                                      .depth = 4};
constexpr int64_t kMaxRank = 8;

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};
constexpr DTypeInfo kDTypes[] = {
    {DType::kF32, "F32", 4}, {DType::kF16, "F16", 2},   {DType::kBF16, "BF16", 2},
    {DType::kI64, "I64", 8}, {DType::kI32, "I32", 4},   {DType::kI8, "I8", 1},
    {DType::kU8, "U8", 1},   {DType::kBool, "BOOL", 1},
};

const DTypeInfo& InfoOf(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

std::string ShapeText(absl::Span<const int64_t> shape) {
  return StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// One tensor as the header describes it, checked by itself.
struct Entry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

absl::StatusOr<DType> ParseDType(const JsonObject& fields) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, fields.String("dtype"));
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
  }
  return fields.Unexpected("dtype", "one of F32, F16, BF16, I64, I32, I8, U8, BOOL");
}

absl::StatusOr<std::vector<int64_t>> ParseInts(const JsonObject& fields, std::string_view field) {
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, fields.Array(field));
  if (list->size() > kMaxRank) {
    return absl::InvalidArgumentError(StrCat(fields.where(), ": ", field, ": found ", list->size(),
                                             " numbers, expected at most ", kMaxRank));
  }
  std::vector<int64_t> values;
  for (const Json& item : *list) {
    NIBBLE_ASSIGN_OR_RETURN(values.emplace_back(),
                            JsonInt(item, StrCat(fields.where(), ": ", field), {.min = 0}));
  }
  return values;
}

// Bytes of a tensor, or nothing when they do not fit 63 bits.
std::optional<int64_t> TensorBytes(DType dtype, absl::Span<const int64_t> shape) {
  int64_t bytes = DTypeBytes(dtype);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::StatusOr<Entry> ParseEntry(const std::string& name, const Json& value,
                                 std::string_view where) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject fields,
                          JsonObject::From(value, StrCat(where, ": tensor ", Quoted(name))));
  Entry entry{.name = name, .dtype = DType::kF32, .shape = {}, .begin = 0, .end = 0};
  NIBBLE_ASSIGN_OR_RETURN(entry.dtype, ParseDType(fields));
  NIBBLE_ASSIGN_OR_RETURN(entry.shape, ParseInts(fields, "shape"));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets, ParseInts(fields, "data_offsets"));
  const std::optional<int64_t> bytes = TensorBytes(entry.dtype, entry.shape);
  if (!bytes.has_value()) {
    return absl::InvalidArgumentError(StrCat(fields.where(), ": shape: found ",
                                             ShapeText(entry.shape),
                                             ", expected a size that 63 bits hold"));
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] - offsets[0] != *bytes) {
    return absl::InvalidArgumentError(StrCat(
        fields.where(), ": data_offsets: found ", ShapeText(offsets), ", expected two that are ",
        *bytes, " bytes apart (", DTypeName(entry.dtype), " ", ShapeText(entry.shape), ")"));
  }
  entry.begin = static_cast<uint64_t>(offsets[0]);
  entry.end = static_cast<uint64_t>(offsets[1]);
  return entry;
}

// The entries of a header, sorted by offset; together they cover `data_bytes` without gap.
absl::StatusOr<std::vector<Entry>> ParseHeader(std::string_view header, uint64_t data_bytes,
                                               std::string_view where) {
  if (!header.starts_with('{')) {
    return absl::InvalidArgumentError(StrCat(where, ": the header does not begin with '{'"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json json, ParseJson(header, where, kHeaderLimits));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject fields, JsonObject::From(json, std::string(where)));
  std::vector<Entry> entries;
  for (const auto& [name, value] : fields.fields()) {
    if (name == "__metadata__") continue;
    NIBBLE_ASSIGN_OR_RETURN(entries.emplace_back(), ParseEntry(name, value, where));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      return absl::InvalidArgumentError(
          StrCat(where, ": tensor ", Quoted(entry.name), ": found its bytes at ", entry.begin,
                 ", expected ", covered, entry.begin < covered ? " (overlap)" : " (gap)"));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(
        StrCat(where, ": found ", data_bytes, " bytes of tensors in the file, expected ", covered));
  }
  return entries;
}

// A shard's name in the index must not lead out of the folder.
bool IsPlainFileName(std::string_view name) {
  return name.ends_with(".safetensors") && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

// The index: which shard each tensor is in.
absl::StatusOr<absl::flat_hash_map<std::string, std::string>> ReadIndex(
    const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, kHeaderLimits));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject index, JsonObject::From(json, path.string()));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject weight_map, index.Object("weight_map"));
  absl::flat_hash_map<std::string, std::string> shard_of;
  for (const auto& [tensor, value] : weight_map.fields()) {
    NIBBLE_ASSIGN_OR_RETURN(std::string shard, weight_map.String(tensor));
    if (!IsPlainFileName(shard)) {
      return absl::InvalidArgumentError(StrCat(weight_map.where(), ": tensor ", Quoted(tensor),
                                               ": found the file ", Quoted(shard),
                                               ", expected the name of a .safetensors file in "
                                               "the same folder"));
    }
    shard_of.emplace(tensor, std::move(shard));
  }
  if (shard_of.empty()) {
    return absl::InvalidArgumentError(
        StrCat(weight_map.where(), ": found no tensor, expected one or more"));
  }
  return shard_of;
}

}  // namespace

std::string_view DTypeName(DType dtype) { return InfoOf(dtype).name; }
int64_t DTypeBytes(DType dtype) { return InfoOf(dtype).bytes; }

int64_t TensorView::elements() const {
  return static_cast<int64_t>(bytes.size()) / DTypeBytes(dtype);
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(
    const std::filesystem::path& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, StrCat("can't open ", path.string()));
  const absl::Cleanup close_file = [descriptor] { close(descriptor); };
  struct stat info;
  if (fstat(descriptor, &info) != 0) {
    return absl::ErrnoToStatus(errno, StrCat("can't stat ", path.string()));
  }
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (!S_ISREG(info.st_mode) || file_bytes < kLengthBytes + 2) {
    return absl::InvalidArgumentError(
        StrCat(path.string(), ": found ", file_bytes, " bytes, expected a safetensors file"));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  void* map = mmap(nullptr, file_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (map == MAP_FAILED) return absl::ErrnoToStatus(errno, StrCat("can't map ", path.string()));
  file->path_ = path;
  file->map_ = map;
  file->map_bytes_ = file_bytes;

  const auto* data = static_cast<const uint8_t*>(map);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, data, kLengthBytes);
  const uint64_t most = std::min<uint64_t>(kHeaderLimits.bytes, file_bytes - kLengthBytes);
  if (header_bytes > most) {
    return absl::InvalidArgumentError(StrCat(path.string(), ": found a header of ", header_bytes,
                                             " bytes, expected at most ", most));
  }
  const std::string_view header(reinterpret_cast<const char*>(data) + kLengthBytes, header_bytes);
  const uint8_t* tensor_data = data + kLengthBytes + header_bytes;
  NIBBLE_ASSIGN_OR_RETURN(
      std::vector<Entry> entries,
      ParseHeader(header, file_bytes - kLengthBytes - header_bytes, path.string()));
  for (Entry& entry : entries) {
    file->tensors_.emplace(
        std::move(entry.name),
        TensorView{entry.dtype, std::move(entry.shape),
                   absl::MakeConstSpan(tensor_data + entry.begin, entry.end - entry.begin)});
  }
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(map_, map_bytes_);
}

absl::StatusOr<std::unique_ptr<TensorSource>> TensorSource::OpenFile(
    const std::filesystem::path& file) {
  NIBBLE_ASSIGN_OR_RETURN(auto mapped, SafetensorsFile::Open(file));
  std::unique_ptr<TensorSource> source(new TensorSource);
  source->tensors_ = mapped->tensors();
  source->files_.push_back(file);
  source->shards_.push_back(std::move(mapped));
  return source;
}

absl::StatusOr<std::unique_ptr<TensorSource>> TensorSource::Open(
    const std::filesystem::path& folder) {
  const std::filesystem::path single = folder / "model.safetensors";
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  if (std::error_code error; std::filesystem::exists(single, error)) {
    return OpenFile(single);
  } else if (!std::filesystem::exists(index, error)) {
    return absl::NotFoundError(StrCat(folder.string(),
                                      ": found neither model.safetensors nor "
                                      "model.safetensors.index.json"));
  }
  std::unique_ptr<TensorSource> source(new TensorSource);
  NIBBLE_ASSIGN_OR_RETURN(const auto shard_of, ReadIndex(index));
  absl::flat_hash_map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, shard] : shard_of) opened.emplace(shard, nullptr);
  for (auto& [shard, file] : opened) {
    const std::filesystem::path path = folder / shard;
    if (std::error_code error; !std::filesystem::exists(path, error)) {
      return absl::NotFoundError(
          StrCat(index.string(), ": the shard ", Quoted(shard), " is not in the folder"));
    }
    NIBBLE_ASSIGN_OR_RETURN(auto mapped, SafetensorsFile::Open(path));
    file = mapped.get();
    source->files_.push_back(path);
    source->shards_.push_back(std::move(mapped));
    for (const auto& [name, view] : file->tensors()) {
      const auto entry = shard_of.find(name);
      if (entry == shard_of.end() || entry->second != shard) {
        return absl::InvalidArgumentError(StrCat(path.string(), ": found the tensor ", Quoted(name),
                                                 ", which ", index.string(),
                                                 " does not place there"));
      }
      source->tensors_.emplace(name, view);
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (!source->tensors_.contains(tensor)) {
      return absl::InvalidArgumentError(StrCat(index.string(), ": the tensor ", Quoted(tensor),
                                               " is not in its shard ", Quoted(shard)));
    }
  }
  std::sort(source->files_.begin(), source->files_.end());
  return source;
}

bool TensorSource::Contains(std::string_view name) const { return tensors_.contains(ToAbsl(name)); }

absl::StatusOr<TensorView> TensorSource::Find(std::string_view name) const {
  const auto entry = tensors_.find(ToAbsl(name));
  if (entry == tensors_.end()) {
    return absl::NotFoundError(StrCat("the checkpoint has no tensor ", Quoted(name)));
  }
  return entry->second;
}

absl::StatusOr<TensorView> TensorSource::Find(std::string_view name,
                                              absl::Span<const int64_t> shape) const {
  NIBBLE_ASSIGN_OR_RETURN(TensorView view, Find(name));
  if (absl::MakeConstSpan(view.shape) != shape) {
    return absl::InvalidArgumentError(StrCat("tensor ", Quoted(name), ": found the shape ",
                                             ShapeText(view.shape), ", expected ",
                                             ShapeText(shape)));
  }
  return view;
}

std::vector<std::string> TensorSource::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

void TensorSource::Release(const TensorView& view) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(view.bytes.data()) & ~(page - 1);
  const auto end = reinterpret_cast<uintptr_t>(view.bytes.data() + view.bytes.size());
  // Advice only: the pages come back from the file when they are touched again.
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace nibble
