//! Whether a class comes with ComfyUI itself.

/// The classes of ComfyUI's `nodes.py` (v0.3.75).
const OF_NODES_PY: &str = "
    CLIPLoader CLIPSetLastLayer CLIPTextEncode CLIPVisionEncode CLIPVisionLoader CheckpointLoader
    CheckpointLoaderSimple ConditioningAverage ConditioningCombine ConditioningConcat ConditioningSetArea
    ConditioningSetAreaPercentage ConditioningSetAreaStrength ConditioningSetMask ConditioningSetTimestepRange
    ConditioningZeroOut ControlNetApply ControlNetApplyAdvanced ControlNetLoader DiffControlNetLoader
    DiffusersLoader DualCLIPLoader EmptyImage EmptyLatentImage GLIGENLoader GLIGENTextBoxApply ImageBatch
    ImageInvert ImagePadForOutpaint ImageScale ImageScaleBy InpaintModelConditioning KSampler KSamplerAdvanced
    LatentBlend LatentComposite LatentCrop LatentFlip LatentFromBatch LatentRotate LatentUpscale LatentUpscaleBy
    LoadImage LoadImageMask LoadImageOutput LoadLatent LoraLoader LoraLoaderModelOnly PreviewImage RepeatLatentBatch
    SaveImage SaveLatent SetLatentNoiseMask StyleModelApply StyleModelLoader UNETLoader VAEDecode VAEDecodeTiled
    VAEEncode VAEEncodeForInpaint VAEEncodeTiled VAELoader unCLIPCheckpointLoader unCLIPConditioning";

/// What `python_module` tells of a class. `nodes` is also said of classes that packs register past the loader, which
/// leaves no trace of where they come from (`RELATIVE_PYTHON_MODULE` in `node_info`, server.py).
pub(super) fn is_own(class: &str, module: &str) -> bool {
    match module {
        "" => false,
        "nodes" => OF_NODES_PY.split_whitespace().any(|own| own == class),
        module => !module.starts_with("custom_nodes"),
    }
}
