/** An image of qemu-img 10.0.2 with what this project cannot make by itself so far: snapshots and bitmaps. */
import { inflateSync } from 'node:zlib';

/** 512-byte clusters, 200 KiB, lazy refcounts, snapshots "one" and "two words", bitmaps "bm0" and "off", one compressed cluster. */
export const qcow2WithSnapshots = new Uint8Array(
  inflateSync(
    Buffer.from(
      'eNrt3F1LwlAcx/GzTTNFIipEQ0IySiKiJCIiIiKEIqLuuu3Jm1CjJ28l6MX0bnozXXWT2/6nmbgSCk3P9zPcz+2wc3EmZ+7s' +
        '6Elp/10p5aiv4t7ayentmB8jsmm7K0u/UWqj7XCvTGek+brRBfnnwkMz0sGxnh0/jhX6IUITmMr6XJzm0vpeb9kdFr0/qCOo' +
        'CQOk4a1nQkpTIftXaLihkpBMSo5JjktOSE71r5f6XSKsYQEAAAAY42/uItKS09xQDRgbgLH88d/RkHHhFB2kkeO/s5JzkvOS' +
        'BclFyaWQ+jYlt4Z+/Nd/cL38z5/v7EmWOP+Gnf+fOAAAAACMcXGWieYzjICgl4qSazRFn8UBGMsfF851Pf+/wfz/IZR1VzH3' +
        'dz/X9tvj5ELlNGSChwwaB5+X1Vr1KihY1/XE3XqyL9XXbusp3tdruXrt9vKOs9FLUQDGogeEUts0Ady5Eo6V9P8L4rzCd3wT' +
        'xAAYq2UW2zf9/64ut6yEX14rl+k8h8ATTQB1QBMAxjrU13e78/X/SJer9uv/B4sysLI=',
      'base64',
    ),
  ),
);
