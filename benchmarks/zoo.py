"""The third-party models that coverage is measured on: a factory and example inputs each.

Random weights, full architectures, small inputs (batch 2; images no larger than the model allows), so that
one model takes seconds. A model whose package is not installed is reported as skipped, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: `build()` gives the module and its (args, kwargs)."""

    name: str
    package: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]


ZOO: list[Entry] = []


def image(size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def ids(length: int, vocabulary: int = 1000, batch: int = 2) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))


def entry(name: str, package: str) -> Callable[[Callable[[], tuple[Any, ...]]], None]:
    def add(build: Callable[[], tuple[Any, ...]]) -> None:
        def full() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
            model, args, *rest = build()
            return model, tuple(args), rest[0] if rest else {}

        ZOO.append(Entry(name, package, full))

    return add


def _torchvision(name: str, size: int = 64, **options: Any) -> None:
    def build() -> tuple[Any, ...]:
        import torchvision

        return torchvision.models.get_model(name, weights=None, **options), (image(size),)

    entry(f"torchvision/{name}", "torchvision")(build)


for _name in (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121",
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x1_0",
    "squeezenet1_1", "mnasnet1_0", "convnext_tiny",
):  # fmt: skip
    _torchvision(_name, size=64)
_torchvision("googlenet", 96, init_weights=False)
_torchvision("inception_v3", 299, init_weights=False)
_torchvision("vit_b_16", 224)
_torchvision("swin_t", 64)
_torchvision("swin_v2_t", 64)
_torchvision("maxvit_t", 224)


@entry("torchvision/fcn_resnet50", "torchvision")
def _fcn() -> tuple[Any, ...]:
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True), (image(64),)


@entry("torchvision/deeplabv3_mobilenet", "torchvision")
def _deeplab() -> tuple[Any, ...]:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), (image(64),)


@entry("torchvision/r3d_18", "torchvision")
def _r3d() -> tuple[Any, ...]:
    from torchvision.models.video import r3d_18

    return r3d_18(weights=None), (torch.randn(2, 3, 4, 32, 32),)


def _timm(name: str, size: int = 64, **options: Any) -> None:
    def build() -> tuple[Any, ...]:
        import timm

        return timm.create_model(name, pretrained=False, **options), (image(size),)

    entry(f"timm/{name}", "timm")(build)


for _name in (
    "resnet26d", "resnetv2_50", "efficientnetv2_rw_t", "mobilenetv4_conv_small", "ghostnet_100",
    "hrnet_w18_small", "dm_nfnet_f0", "nf_resnet50", "repvgg_a2", "convnextv2_atto", "darknet53", "dla34",
    "vovnet39a", "edgenext_xx_small", "skresnet18",
):  # fmt: skip
    _timm(_name)
for _name in (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s16_224", "resmlp_12_224",
    "gmlp_s16_224", "poolformer_s12", "cait_xxs24_224", "pit_ti_224", "coat_tiny", "levit_128s",
    "beit_base_patch16_224", "xcit_nano_12_p16_224", "eva02_tiny_patch14_224", "twins_svt_small", "pvt_v2_b0",
):  # fmt: skip
    _timm(_name, 224)
_timm("mobilevit_xxs", 128)
_timm("swin_tiny_patch4_window7_224", 224)


def _transformer(
    name: str, model: str, config: str, inputs: Callable[[], dict[str, Any]], **options: Any
) -> None:
    def build() -> tuple[Any, ...]:
        import transformers

        made = getattr(transformers, config)(**options)
        return getattr(transformers, model)(made), (), inputs()

    entry(f"transformers/{name}", "transformers")(build)


def _tokens(length: int = 16, vocabulary: int = 1000, labels: bool = False) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        tokens = ids(length, vocabulary)
        return {"input_ids": tokens, **({"labels": tokens} if labels else {})}

    return make


_SMALL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_transformer("bert", "BertForMaskedLM", "BertConfig", _tokens(labels=True), **_SMALL)
_transformer("roberta", "RobertaForSequenceClassification", "RobertaConfig", _tokens(), **_SMALL)
_transformer("electra", "ElectraForMaskedLM", "ElectraConfig", _tokens(), **_SMALL)
_transformer("albert", "AlbertForMaskedLM", "AlbertConfig", _tokens(), **_SMALL, embedding_size=32)
_transformer(
    "deberta-v2",
    "DebertaV2ForSequenceClassification",
    "DebertaV2Config",
    _tokens(),
    **_SMALL,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
)
_transformer(
    "distilbert",
    "DistilBertForSequenceClassification",
    "DistilBertConfig",
    _tokens(),
    vocab_size=1000,
    dim=64,
    n_layers=2,
    n_heads=4,
    hidden_dim=128,
)
_transformer(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2Config",
    _tokens(labels=True),
    vocab_size=1000,
    n_embd=64,
    n_layer=2,
    n_head=4,
)
_transformer(
    "opt",
    "OPTForCausalLM",
    "OPTConfig",
    _tokens(),
    vocab_size=1000,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_dim=128,
    word_embed_proj_dim=64,
)
_transformer(
    "llama", "LlamaForCausalLM", "LlamaConfig", _tokens(labels=True), **_SMALL, num_key_value_heads=2
)
_transformer("mistral", "MistralForCausalLM", "MistralConfig", _tokens(), **_SMALL, num_key_value_heads=2)
_transformer("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _tokens(), **_SMALL, num_key_value_heads=2)
_transformer(
    "gemma", "GemmaForCausalLM", "GemmaConfig", _tokens(), **_SMALL, num_key_value_heads=2, head_dim=16
)
_transformer("phi", "PhiForCausalLM", "PhiConfig", _tokens(), **_SMALL)
_transformer(
    "mixtral",
    "MixtralForCausalLM",
    "MixtralConfig",
    _tokens(),
    **_SMALL,
    num_key_value_heads=2,
    num_local_experts=4,
)
_transformer(
    "bloom",
    "BloomForCausalLM",
    "BloomConfig",
    _tokens(),
    vocab_size=1000,
    hidden_size=64,
    n_layer=2,
    n_head=4,
)
_transformer(
    "mamba",
    "MambaForCausalLM",
    "MambaConfig",
    _tokens(),
    vocab_size=1000,
    hidden_size=64,
    num_hidden_layers=2,
)
_T5 = {
    "vocab_size": 1000,
    "d_model": 64,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 16,
    "decoder_start_token_id": 0,
}
_transformer("t5", "T5ForConditionalGeneration", "T5Config", _tokens(labels=True), **_T5)
_transformer(
    "bart",
    "BartForConditionalGeneration",
    "BartConfig",
    _tokens(labels=True),
    vocab_size=1000,
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
)
_transformer(
    "vit",
    "ViTForImageClassification",
    "ViTConfig",
    lambda: {"pixel_values": image(64)},
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=64,
)
_transformer(
    "convnext", "ConvNextForImageClassification", "ConvNextConfig", lambda: {"pixel_values": image(64)}
)
_transformer(
    "segformer", "SegformerForSemanticSegmentation", "SegformerConfig", lambda: {"pixel_values": image(64)}
)
_transformer(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    lambda: {"input_features": torch.randn(2, 80, 200), "decoder_input_ids": ids(8)},
    vocab_size=1000,
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    max_source_positions=100,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
_transformer(
    "wav2vec2",
    "Wav2Vec2ForCTC",
    "Wav2Vec2Config",
    lambda: {"input_values": torch.randn(2, 4000)},
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    vocab_size=32,
    conv_dim=(64, 64, 64, 64, 64, 64, 64),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    mask_time_prob=0.0,
    layerdrop=0.0,
)


@entry("transformers/clip", "transformers")
def _clip() -> tuple[Any, ...]:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 64,
        "patch_size": 16,
    }
    inputs = {
        "input_ids": ids(16),
        "pixel_values": image(64),
        "attention_mask": torch.ones(2, 16, dtype=torch.int64),
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)), (), inputs


@entry("smp/unet_resnet18", "segmentation_models_pytorch")
def _unet() -> tuple[Any, ...]:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=4), (image(64),)


@entry("smp/fpn_mobilenet", "segmentation_models_pytorch")
def _fpn() -> tuple[Any, ...]:
    import segmentation_models_pytorch as smp

    return smp.FPN("mobilenet_v2", encoder_weights=None, classes=4), (image(64),)


@entry("monai/unet3d", "monai")
def _monai_unet() -> tuple[Any, ...]:
    from monai.networks.nets import UNet

    return UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), (torch.randn(2, 1, 16, 16, 16),)


@entry("monai/segresnet", "monai")
def _segresnet() -> tuple[Any, ...]:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 8, 1, 2), (torch.randn(2, 1, 16, 16, 16),)


@entry("monai/swin_unetr", "monai")
def _swin_unetr() -> tuple[Any, ...]:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12), (torch.randn(2, 1, 64, 64, 64),)


@entry("vit_pytorch/simple_vit", "vit_pytorch")
def _simple_vit() -> tuple[Any, ...]:
    from vit_pytorch import SimpleViT

    return SimpleViT(image_size=64, patch_size=16, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=128), (
        image(64),
    )


@entry("vit_pytorch/cct", "vit_pytorch")
def _cct() -> tuple[Any, ...]:
    from vit_pytorch.cct import CCT

    return CCT(
        img_size=64,
        embedding_dim=64,
        n_conv_layers=1,
        num_layers=2,
        num_heads=4,
        mlp_ratio=2.0,
        num_classes=10,
    ), (image(64),)


@entry("x_transformers/decoder", "x_transformers")
def _x_decoder() -> tuple[Any, ...]:
    from x_transformers import Decoder, TransformerWrapper

    return TransformerWrapper(
        num_tokens=1000, max_seq_len=32, attn_layers=Decoder(dim=64, depth=2, heads=4)
    ), (ids(16),)


@entry("efficientnet_pytorch/b0", "efficientnet_pytorch")
def _efficientnet() -> tuple[Any, ...]:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0"), (image(64),)


@entry("pytorch_tabnet/tabnet", "pytorch_tabnet")
def _tabnet() -> tuple[Any, ...]:
    from pytorch_tabnet.tab_network import TabNet

    return TabNet(16, 3, group_attention_matrix=torch.eye(16)), (torch.randn(8, 16),)


@entry("performer_pytorch/performer", "performer_pytorch")
def _performer() -> tuple[Any, ...]:
    from performer_pytorch import PerformerLM

    return PerformerLM(num_tokens=1000, max_seq_len=32, dim=64, depth=2, heads=4, dim_head=16), (ids(32),)


@entry("linformer/linformer", "linformer")
def _linformer() -> tuple[Any, ...]:
    from linformer import Linformer

    return Linformer(dim=64, seq_len=32, depth=2, heads=4, k=16), (torch.randn(2, 32, 64),)


@entry("torch_geometric/gcn", "torch_geometric")
def _gcn() -> tuple[Any, ...]:
    from torch_geometric.nn import GCN

    return GCN(16, 32, 2, 4), (torch.randn(10, 16), torch.randint(0, 10, (2, 30)))


@entry("torch_geometric/gat", "torch_geometric")
def _gat() -> tuple[Any, ...]:
    from torch_geometric.nn import GAT

    return GAT(16, 32, 2, 4, heads=2), (torch.randn(10, 16), torch.randint(0, 10, (2, 30)))


@entry("neuralop/fno", "neuralop")
def _fno() -> tuple[Any, ...]:
    from neuralop.models import FNO

    return FNO(n_modes=(8, 8), hidden_channels=16, in_channels=1, out_channels=1), (
        torch.randn(2, 1, 16, 16),
    )


@entry("torch/transformer", "torch")
def _torch_transformer() -> tuple[Any, ...]:
    return nn.Transformer(64, 4, 2, 2, 128, batch_first=True), (torch.randn(2, 8, 64), torch.randn(2, 6, 64))


@entry("torch/weight_norm_tcn", "torch")
def _tcn() -> tuple[Any, ...]:
    from torch.nn.utils.parametrizations import weight_norm

    layers = [
        weight_norm(nn.Conv1d(8 if i == 0 else 32, 32, 3, padding=2**i, dilation=2**i)) for i in range(4)
    ]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())]), (torch.randn(2, 8, 64),)


@entry("torch/lstm_classifier", "torch")
def _lstm() -> tuple[Any, ...]:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 32)
            self.lstm = nn.LSTM(32, 64, 2, batch_first=True)
            self.head = nn.Linear(64, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.lstm(self.embed(tokens))[0][:, -1])

    return Classifier(), (ids(12),)
