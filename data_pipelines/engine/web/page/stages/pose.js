// Stage 3: the accepted mesh on the points of the photo, moved by a gizmo.
//
// The world is the photo's camera turned by half a turn about y, so that three.js looks along it:
// x left, y up, z forward becomes x right, y up, z back.

import { TransformControls } from "three/addons/controls/TransformControls.js";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

import { bytes, picture, post } from "../api.js";
import { element, keys, photoCanvas } from "../parts.js";
import { THREE, candidate, lights, still } from "../scene.js";

const TURN = new THREE.Quaternion(0, 1, 0, 0); // half a turn about y
const Z_UP = new THREE.Quaternion().setFromAxisAngle(new THREE.Vector3(1, 0, 0), Math.PI / 2); // y up to z up

export async function pose(main, task, decided) {
  const { view, photo } = task;
  const holder = element("div", { className: "view" });
  const side = element("div", { className: "side" }, await photoCanvas(photo));
  main.replaceChildren(side, holder);

  // the scene
  const canvas = element("canvas");
  holder.append(canvas);
  const renderer = new THREE.WebGLRenderer({ canvas, antialias: !still });
  const scene = new THREE.Scene();
  scene.background = new THREE.Color(0x24272d);
  lights(scene);
  const camera = new THREE.PerspectiveCamera(50, 1, 0.01, 1000);
  const world = new THREE.Group();
  world.quaternion.copy(TURN);
  scene.add(world);
  const cloud = await points(task);
  if (cloud) world.add(cloud);
  const object = new THREE.Group(); // pose of the unit cube, z up
  const inner = await candidate(view.mesh, ".glb");
  const upright = new THREE.Group();
  upright.quaternion.copy(Z_UP);
  upright.add(inner);
  object.add(upright);
  world.add(object);
  put(object, view.pose);

  // the gizmo, and looking around
  const orbit = new OrbitControls(camera, canvas);
  const gizmo = new TransformControls(camera, canvas);
  gizmo.attach(object);
  scene.add(gizmo.getHelper());
  let dirty = true;
  let stopped = false;
  const history = [];
  let before = read(object);
  gizmo.addEventListener("dragging-changed", (event) => {
    orbit.enabled = !event.value;
    if (event.value) before = read(object);
    else changed();
  });
  gizmo.addEventListener("objectChange", () => {
    // one scale for all axes: the axis that was pulled decides
    if (gizmo.mode === "scale") {
      const { x, y, z } = object.scale;
      const was = before.scale;
      const pulled = [x, y, z].sort((a, b) => Math.abs(b / was - 1) - Math.abs(a / was - 1))[0];
      object.scale.setScalar(Math.max(1e-4, Math.abs(pulled)));
    }
    dirty = true;
    measure();
  });
  gizmo.addEventListener("change", () => (dirty = true));
  orbit.addEventListener("change", () => (dirty = true));

  // what the server says of the pose
  const fit = element("p", { id: "iou", className: "big" }, "mask IoU …");
  let asked = false;
  let again = false;
  async function measure() {
    if (asked) {
      again = true;
      return;
    }
    asked = true;
    try {
      const { iou } = await post(`/api/tasks/${task.task}/iou`, read(object));
      fit.textContent = `mask IoU ${iou.toFixed(3)}`;
      fit.dataset.value = iou;
    } catch (error) {
      fit.textContent = error.message;
    }
    asked = false;
    if (again) {
      again = false;
      measure();
    }
  }

  function changed() {
    history.push(before);
    before = read(object);
    dirty = true;
    measure();
  }
  function move(change) {
    before = read(object);
    change();
    changed();
  }
  function undo() {
    const last = history.pop();
    if (!last) return;
    put(object, last);
    before = read(object);
    dirty = true;
    measure();
  }
  const modes = {};
  function mode(name) {
    gizmo.setMode(name);
    for (const [other, button] of Object.entries(modes)) button.classList.toggle("on", other === name);
    dirty = true;
  }
  for (const [name, key] of [["translate", "t"], ["rotate", "r"], ["scale", "s"]]) {
    modes[name] = element("button", { id: name, onclick: () => mode(name) }, `${name} `, element("kbd", {}, key));
  }

  // the photo's own view, with its off-centre projection
  function photoView() {
    camera.position.set(0, 0, 0);
    camera.quaternion.identity();
    const centre = world.localToWorld(object.position.clone());
    orbit.target.copy(new THREE.Vector3(0, 0, centre.z));
    orbit.update();
    dirty = true;
  }
  function floor() {
    // the lowest corner of the box comes to the lowest points of the cloud about it
    if (!cloud) return;
    move(() => {
      object.updateWorldMatrix(true, true);
      const box = new THREE.Box3().setFromObject(object);
      const position = cloud.geometry.attributes.position;
      const reach = Math.max(box.max.x - box.min.x, box.max.z - box.min.z);
      const near = [];
      const point = new THREE.Vector3();
      for (let number = 0; number < position.count; number++) {
        point.fromBufferAttribute(position, number).applyQuaternion(TURN);
        const inX = point.x > box.min.x - reach && point.x < box.max.x + reach;
        const inZ = point.z > box.min.z - reach && point.z < box.max.z + reach;
        if (inX && inZ) near.push(point.y);
      }
      if (!near.length) return;
      near.sort((a, b) => a - b);
      const ground = near[Math.floor(0.05 * near.length)];
      object.position.y += ground - box.min.y; // y is up in both
    });
  }

  side.append(
    fit,
    element("div", { className: "row" }, ...Object.values(modes)),
    element(
      "div",
      { className: "row" },
      element("button", { id: "undo", onclick: undo }, "undo ", element("kbd", {}, "z")),
      element("button", { id: "floor", onclick: floor }, "floor ", element("kbd", {}, "f")),
      element("button", { id: "photo-view", onclick: photoView }, "photo view ", element("kbd", {}, "v")),
    ),
    element("button", { id: "save", className: "big", onclick: () => decided("pose", read(object)) }, "save ", element("kbd", {}, "Enter")),
    element("p", {}, "Bring the object onto its points. Drag beside it to look around; the photo view shows it as the camera did."),
  );

  function draw() {
    const { clientWidth: width, clientHeight: height } = holder;
    renderer.setSize(width, height, false);
    // the field of view of the photo, fitted to the pane
    const byHeight = (2 * Math.atan(photo.height / 2 / view.camera.fy) * 180) / Math.PI;
    const wide = photo.width / photo.height > width / height;
    const share = wide ? (photo.width / photo.height) / (width / height) : 1;
    camera.fov = (2 * Math.atan(Math.tan((byHeight * Math.PI) / 360) * share) * 180) / Math.PI;
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    renderer.render(scene, camera);
  }
  const frame = () => {
    if (stopped) return;
    if (dirty) {
      dirty = false;
      draw();
    }
    requestAnimationFrame(frame);
  };
  new ResizeObserver(() => (dirty = true)).observe(holder);
  mode("translate");
  photoView();
  measure();
  frame();
  const remove = keys({
    t: () => mode("translate"),
    r: () => mode("rotate"),
    s: () => mode("scale"),
    z: undo,
    f: floor,
    v: photoView,
    Enter: () => decided("pose", read(object)),
  });
  holder.dataset.ready = "1";
  // for tests: where the object stands in the window
  holder.screenPosition = () => {
    const projected = world.localToWorld(object.position.clone()).project(camera);
    const box = canvas.getBoundingClientRect();
    return [box.left + ((projected.x + 1) / 2) * box.width, box.top + ((1 - projected.y) / 2) * box.height];
  };
  return () => {
    stopped = true;
    remove();
    gizmo.dispose();
    orbit.dispose();
    renderer.dispose();
  };
}

function put(object, stated) {
  const [w, x, y, z] = stated.rotation;
  object.quaternion.set(x, y, z, w);
  object.position.fromArray(stated.translation);
  object.scale.setScalar(Array.isArray(stated.scale) ? stated.scale[0] : stated.scale);
}

function read(object) {
  const { x, y, z, w } = object.quaternion;
  return { rotation: [w, x, y, z], translation: object.position.toArray(), scale: object.scale.x };
}

async function points(task) {
  if (!task.view.has_points) return null;
  const packed = await bytes(`/api/tasks/${task.task}/points`);
  const count = new Uint32Array(packed, 0, 1)[0];
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(packed, 4, 3 * count), 3));
  geometry.setAttribute("color", new THREE.BufferAttribute(new Uint8Array(packed, 4 + 12 * count, 3 * count), 3, true));
  const material = new THREE.PointsMaterial({ size: 2, sizeAttenuation: false, vertexColors: true });
  return new THREE.Points(geometry, material);
}
