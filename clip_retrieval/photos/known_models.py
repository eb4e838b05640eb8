"""Well-known models, with their zero-shot accuracy on ImageNet in percent: the published figures of open_clip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A model: the name that opens it, its accuracy, and the repositories of the hub that hold its weights."""

    clip_model: str
    accuracy: float
    repositories: tuple[str, ...] = ()


KNOWN = (
    Known("open_clip:ViT-H-14-378-quickgelu/dfn5b", 84.4, ("apple/DFN5B-CLIP-ViT-H-14-378",)),
    Known("open_clip:ViT-SO400M-14-SigLIP-384/webli", 83.1, ("timm/ViT-SO400M-14-SigLIP-384",)),
    Known("open_clip:ViT-L-14-quickgelu/dfn2b", 81.4, ("apple/DFN2B-CLIP-ViT-L-14",)),
    Known("open_clip:ViT-bigG-14/laion2b_s39b_b160k", 80.1, ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",)),
    Known("open_clip:ViT-L-14/datacomp_xl_s13b_b90k", 79.2, ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",)),
    Known("open_clip:ViT-H-14/laion2b_s32b_b79k", 78.0, ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",)),
    Known("open_clip:MobileCLIP-B/datacompdr", 76.8, ("apple/MobileCLIP-B-OpenCLIP",)),
    Known("open_clip:ViT-L-14-336/openai", 76.6, ("timm/vit_large_patch14_clip_336.openai",)),
    Known("hf_clip:openai/clip-vit-large-patch14-336", 76.6, ("openai/clip-vit-large-patch14-336",)),
    Known("open_clip:ViT-B-16-SigLIP/webli", 76.0, ("timm/ViT-B-16-SigLIP",)),
    Known("ViT-L/14", 75.5, ("timm/vit_large_patch14_clip_224.openai",)),
    Known("hf_clip:openai/clip-vit-large-patch14", 75.5, ("openai/clip-vit-large-patch14",)),
    Known("open_clip:ViT-L-14/laion2b_s32b_b82k", 75.3, ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K",)),
    Known("open_clip:MobileCLIP-S2/datacompdr", 74.4, ("apple/MobileCLIP-S2-OpenCLIP",)),
    Known("RN50x64", 73.9, ("timm/resnet50x64_clip.openai",)),
    Known("open_clip:ViT-B-16/datacomp_xl_s13b_b90k", 73.5, ("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",)),
    Known("open_clip:ViT-B-32-256/datacomp_s34b_b86k", 72.8, ("laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",)),
    Known("open_clip:MobileCLIP-S1/datacompdr", 72.6, ("apple/MobileCLIP-S1-OpenCLIP",)),
    Known("RN50x16", 70.5, ("timm/resnet50x16_clip.openai",)),
    Known("open_clip:ViT-B-16/laion2b_s34b_b88k", 70.2, ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K",)),
    Known("open_clip:ViT-B-32/datacomp_xl_s13b_b90k", 69.2, ("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",)),
    Known("ViT-B/16", 68.3, ("timm/vit_base_patch16_clip_224.openai",)),
    Known("hf_clip:openai/clip-vit-base-patch16", 68.3, ("openai/clip-vit-base-patch16",)),
    Known("open_clip:ViT-B-32/laion2b_s34b_b79k", 66.6, ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K",)),
    Known("RN50x4", 66.2, ("timm/resnet50x4_clip.openai",)),
    Known("ViT-B/32", 63.3, ("timm/vit_base_patch32_clip_224.openai",)),
    Known("hf_clip:openai/clip-vit-base-patch32", 63.3, ("openai/clip-vit-base-patch32",)),
    Known(
        "open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
        62.3,
        ("laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",),
    ),
    Known("RN101", 62.3, ("timm/resnet101_clip.openai",)),
    Known("RN50", 59.8, ("timm/resnet50_clip.openai",)),
)
