"""A textured mesh in files: the .glb by hand and by another reader, the .obj by another reader."""

import io
import json

import numpy as np
import trimesh
from PIL import Image

from utils.atlas import Atlas
from utils.gltf import Textured, glb, jpeg, mtl, obj, png


def square(shift=(0.0, 0, 0)):
    """A unit square in the plane z = 2, of two faces that share no corner of the texture; red where v < 1/2, blue above."""
    vertices = np.array([[0.0, 0, 2], [1, 0, 2], [1, 1, 2], [0, 1, 2]]) + shift
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]])
    atlas = Atlas(faces.reshape(-1), np.arange(6).reshape(2, 3), uv, 8)
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :, 2], picture[4:, :, 0] = 255, 255  # the first row is the top, v = 1
    matrix = np.diag([2.0, 2, 2, 1])
    return Textured(vertices, np.tile([0.0, 0, 1], (4, 1)), faces, atlas, picture, {"units": "metres", "world_to_mesh": matrix})


def parts(data):
    assert data[:4] == b"glTF" and int.from_bytes(data[4:8], "little") == 2 and int.from_bytes(data[8:12], "little") == len(data)
    length = int.from_bytes(data[12:16], "little")
    assert data[16:20] == b"JSON" and length % 4 == 0
    binary = data[20 + length :]
    assert binary[4:8] == b"BIN\0" and int.from_bytes(binary[:4], "little") == len(binary) - 8 and len(binary) % 4 == 0
    return json.loads(data[20 : 20 + length]), binary[8:]


def test_the_glb_by_hand():
    mesh = square()
    document, binary = parts(glb(mesh, png(mesh.picture), "image/png"))
    assert document["buffers"] == [{"byteLength": len(binary)}]
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
    where = document["meshes"][0]["primitives"][0]
    position = document["accessors"][where["attributes"]["POSITION"]]
    assert (position["count"], position["type"], position["componentType"]) == (6, "VEC3", 5126)
    assert position["min"] == [0, 2, -1] and position["max"] == [1, 2, 0]  # (x, y, z) -> (x, z, -y)
    view = document["bufferViews"][position["bufferView"]]
    points = np.frombuffer(binary[view["byteOffset"] :][: view["byteLength"]], np.float32).reshape(-1, 3)
    assert (points[:3] == [[0, 2, 0], [1, 2, 0], [1, 2, -1]]).all()
    material = document["materials"][0]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0 and material["pbrMetallicRoughness"]["roughnessFactor"] == 1
    assert document["extensionsUsed"] == ["KHR_materials_unlit"] and "KHR_materials_unlit" in material["extensions"]
    image = document["images"][0]
    view = document["bufferViews"][image["bufferView"]]
    data = binary[view["byteOffset"] :][: view["byteLength"]]
    assert image["mimeType"] == "image/png" and (np.asarray(Image.open(io.BytesIO(data))) == mesh.picture).all()
    assert document["asset"]["extras"] == {"units": "metres", "world_to_mesh": np.diag([2.0, 2, 2, 1]).tolist()}


def test_another_reader_finds_the_colours_where_they_belong():
    mesh = square()
    for image, mime in ((png(mesh.picture), "image/png"), (jpeg(mesh.picture), "image/jpeg")):
        loaded = trimesh.load(io.BytesIO(glb(mesh, image, mime)), file_type="glb", process=False).to_geometry()
        assert len(loaded.faces) == 2 and np.allclose(loaded.face_normals, [0, 1, 0])
        uv, picture = np.asarray(loaded.visual.uv), np.asarray(loaded.visual.material.baseColorTexture.convert("RGB"))
        low = np.asarray(loaded.vertices)[:, 2] > -0.5  # y of the mesh is -z of the file
        rows = ((1 - uv[:, 1]) * 7).round().astype(int)  # trimesh has v upwards
        seen = picture[rows, (uv[:, 0] * 7).round().astype(int)]
        assert (np.abs(seen[low].astype(int) - [255, 0, 0]) < 30).all() and (np.abs(seen[~low].astype(int) - [0, 0, 255]) < 30).all()


def test_a_mesh_far_from_the_origin_keeps_its_digits():
    far = square((4_000_000.0, 0, 0))
    document, _ = parts(glb(far, png(far.picture), "image/png"))
    assert document["nodes"][0]["translation"] == [4_000_000.5, 2, -0.5]
    assert document["accessors"][0]["min"] == [-0.5, 0, -0.5]
    assert "translation" not in parts(glb(square(), png(far.picture), "image/png"))[0]["nodes"][0]


def test_the_obj_by_another_reader(tmp_path):
    mesh = square()
    (tmp_path / "a.obj").write_bytes(b"".join(obj(mesh, "a.mtl")))
    (tmp_path / "a.mtl").write_bytes(mtl("a.png"))
    (tmp_path / "a.png").write_bytes(png(mesh.picture))
    text = (tmp_path / "a.obj").read_text()
    assert text.startswith("# units metres\n# world_to_mesh 2 0") and text.count("\nv ") == 4 and text.count("\nvt ") == 6
    loaded = trimesh.load(tmp_path / "a.obj", process=False)
    assert (
        np.allclose(loaded.bounds, [[0, 0, 2], [1, 1, 2]])
        and (np.asarray(loaded.visual.material.image.convert("RGB")) == mesh.picture).all()
    )
    assert np.allclose(loaded.visual.uv, np.asarray(loaded.vertices)[:, :2])
