#include "tests/bench/model/generated_model.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/pipeline/pipeline.h"
#include "tests/bench/model/scheme.h"
#include "tests/fixtures/synthetic_model.h"

namespace nibble {

namespace fs = std::filesystem;

void AddGeneratedModelOptions(CLI::App& app, GeneratedModel& model) {
  app.add_option("--shape", model.shape,
                 "A model of random weights: tiny, llama-3b, llama-7b, llama-13b, llama-3-8b, "
                 "opt-1.3b, opt-6.7b");
  app.add_option("--scheme", model.scheme, "How it is quantized, as scheme.h says");
  app.add_option("--folder", model.folder, "Where it is made; emptied");
  app.add_option("--layers", model.layers, "Only so many of its layers (0: all)");
}

absl::StatusOr<fs::path> MakeGeneratedModel(const GeneratedModel& model, const Device& device) {
  NIBBLE_ASSIGN_OR_RETURN(ModelShape shape, FindShape(model.shape));
  if (model.layers > 0) shape.layers = std::min(shape.layers, model.layers);
  NIBBLE_ASSIGN_OR_RETURN(const QuantizeSpec spec, ParseScheme(model.scheme));
  const fs::path checkpoint = model.folder / model.shape;
  const fs::path artifact = model.folder / "artifact";
  fs::remove_all(model.folder);
  NIBBLE_RETURN_IF_ERROR(WriteSyntheticModel(shape, checkpoint));
  const auto ignore = [](const Progress&) { return absl::OkStatus(); };
  NIBBLE_RETURN_IF_ERROR(QuantizeModel(spec, checkpoint, artifact, ignore, device).status());
  fs::remove_all(checkpoint);
  return artifact;
}

}  // namespace nibble
