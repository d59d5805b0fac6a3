// Objects in three dimensions: loading, lighting and framing, all candidates alike.

import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

import { file } from "./api.js";

export { THREE };

export const still = new URLSearchParams(location.search).has("still");
const GREY = 0xb8b4ac;

// A group with a candidate in the unit cube, y up. Objects of one digest are loaded once.
const loaded = new Map();

export function candidate(digest, suffix) {
  if (!loaded.has(digest)) {
    const found = suffix === ".ply" ? splats(digest) : mesh(digest);
    found.catch(() => loaded.delete(digest));
    loaded.set(digest, found);
  }
  return loaded.get(digest);
}

async function mesh(digest) {
  const gltf = await new GLTFLoader().parseAsync(await file(digest), "");
  const group = new THREE.Group();
  gltf.scene.traverse((node) => {
    if (!node.isMesh) return;
    const smooth = node.geometry.attributes.normal !== undefined;
    const coloured = node.geometry.attributes.color || node.material?.map;
    if (!coloured && node.material?.color?.getHex() === 0xffffff) {
      node.material = new THREE.MeshStandardMaterial({ color: GREY });
    }
    node.material.side = THREE.DoubleSide;
    if (!smooth) node.material.flatShading = true;
    if ("metalness" in node.material) node.material.metalness = 0;
    if ("roughness" in node.material) node.material.roughness = 0.8;
  });
  group.add(gltf.scene);
  return intoCube(group, new THREE.Box3().setFromObject(gltf.scene));
}

// Splats need a renderer of their own, which is fetched where there are some.
async function splats(digest) {
  const { SplatMesh } = await import("@sparkjsdev/spark");
  const splat = new SplatMesh({ fileBytes: new Uint8Array(await file(digest)), fileName: "s.ply" });
  await splat.initialized;
  const group = new THREE.Group();
  const turned = new THREE.Group();
  turned.rotation.x = -Math.PI / 2; // z up in our files
  turned.add(splat);
  group.add(turned);
  return intoCube(group, splat.getBoundingBox().applyMatrix4(turned.matrixWorld));
}

// The box's centre comes to the origin, its longest side to 1, as the builders do it.
function intoCube(group, box) {
  const size = box.getSize(new THREE.Vector3());
  const longest = Math.max(size.x, size.y, size.z) || 1;
  const outer = new THREE.Group();
  group.scale.setScalar(1 / longest);
  group.position.copy(box.getCenter(new THREE.Vector3())).multiplyScalar(-1 / longest);
  outer.add(group);
  outer.userData.half = size.clone().multiplyScalar(0.5 / longest);
  return outer;
}

export function lights(scene) {
  scene.add(new THREE.HemisphereLight(0xffffff, 0x606060, 2.0));
  const key = new THREE.DirectionalLight(0xffffff, 1.6);
  key.position.set(1, 2, 3);
  scene.add(key);
}

// One canvas with panes side by side, which all turn together.
export class Panes {
  constructor(element, count) {
    this.element = element;
    this.canvas = document.createElement("canvas");
    element.append(this.canvas);
    this.renderer = new THREE.WebGLRenderer({ canvas: this.canvas, antialias: !still });
    this.renderer.setScissorTest(true);
    this.panes = Array.from({ length: count }, () => {
      const scene = new THREE.Scene();
      scene.background = new THREE.Color(0x24272d);
      lights(scene);
      const turntable = new THREE.Group();
      scene.add(turntable);
      return { scene, turntable };
    });
    this.camera = new THREE.PerspectiveCamera(35, 1, 0.1, 20);
    this.yaw = 0.6;
    this.pitch = 0.35;
    this.distance = 3;
    this.dragging = false;
    this.stopped = false;
    this.dirty = true;
    this.listen();
    const frame = () => {
      if (this.stopped) return;
      if (!still && !this.dragging) {
        this.yaw += 0.008;
        this.dirty = true;
      }
      if (this.dirty || this.size()) this.draw();
      requestAnimationFrame(frame);
    };
    frame();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      this.dragging = true;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.dragging) return;
      this.yaw += event.movementX * 0.01;
      this.pitch = Math.min(1.5, Math.max(-1.5, this.pitch + event.movementY * 0.01));
      this.dirty = true;
    });
    canvas.addEventListener("pointerup", () => (this.dragging = false));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.distance = Math.min(6, Math.max(1.2, this.distance * Math.exp(event.deltaY * 0.001)));
      this.dirty = true;
    }, { passive: false });
  }

  // Shows objects, one a pane; those that were shown stay loaded.
  show(objects) {
    this.panes.forEach((pane, number) => {
      pane.turntable.clear();
      if (objects[number]) pane.turntable.add(objects[number]);
    });
    this.dirty = true;
  }

  size() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const ratio = still ? 1 : Math.min(devicePixelRatio, 2);
    const wanted = `${width}x${height}x${ratio}`;
    if (wanted === this.sized) return false;
    this.sized = wanted;
    this.renderer.setPixelRatio(ratio);
    this.renderer.setSize(width, height, false);
    return true;
  }

  draw() {
    this.dirty = false;
    this.size();
    const { clientWidth: width, clientHeight: height } = this.element;
    const each = width / this.panes.length;
    this.camera.aspect = each / height;
    // the whole cube in sight, also in a narrow pane
    const away = this.distance / Math.min(1, this.camera.aspect);
    this.camera.position.setFromSphericalCoords(away, Math.PI / 2 - this.pitch, 0);
    this.camera.lookAt(0, 0, 0);
    this.camera.updateProjectionMatrix();
    this.panes.forEach((pane, number) => {
      pane.turntable.rotation.y = this.yaw;
      this.renderer.setViewport(number * each, 0, each, height);
      this.renderer.setScissor(number * each, 0, each, height);
      this.renderer.render(pane.scene, this.camera);
    });
  }

  stop() {
    this.stopped = true;
    this.renderer.dispose();
    this.canvas.remove();
  }
}
