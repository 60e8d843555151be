/** Streams made by the formats' own programs. The data of those called "text" is `sampleText(6000)`. */
const decode = (base64: string): Uint8Array => new Uint8Array(Buffer.from(base64, 'base64'));

/** Apple's lzfse: one block with packed tables (bvx2). */
export const lzfseText = decode(
  'YnZ4MnAXAAA0AXAPAJ8CcGQASd8XcQRwvAAAADkQgAG/wLGqKiAACKwzj8bwZBgH4D1cHLT7ZK2bs6Obs31xcHZwME726J7pqm1U' +
    'AAAAAABgbzZtaSkUWqCUk7L7CUBpNwW6aQG6oW13S1s2pRt2eVpgQ9ktFDYn/QGOT3rFPjnZ9/Tk8ni3J90Au6V0AxR292a3AMBu' +
    'YVPaQvfuSUvZdG/oBqAboO1JoaWFwgnduyele+8W2Lu0bQu7UAoAAIA2MFdk4uAdAxWn8P6tm/BblcRn86rjg51eZseifxRGCTJJ' +
    'Dg8rquPeNTc0UNMCj5HbcED+gb7ErfeGnLg4LBzb3LlgQRFrmBfcaWy5nZAJsNI1Z0baMgS0+Y8k+4Hwa139Tp+2bfJo7mcaxhq7' +
    '48omYm8hjIzE6m/s9CwLEUyDKyoB6Ei0uoWrfU8nXzY9O1EcS+uVScg1s6oRVEjNa0CM25BpoptHxo1NUgNrnD2hjGWbJ6poP7bE' +
    '8KcQrSfMmCp0D4rjJ0TT/Zw18XBdRC8a/nEw2LtZYOvWvVfOKLdgQfC3cWEwY48IUgPYBnKeYRpFlGgyAAAAAAAAAAAAACk9GLYW' +
    '+OIy6S2MbZHnh/l2tMl4gs+25uQfWol6l8pZoiAxiyro1TquS7HPEmk/VahNIfQDRdWgJLS9jNaeVCdr7L01BmN0lt9kXcnblO+w' +
    'BEOsB08GvYQl4e1LbKzkl81rS7mjPWD+cojHzdXOdGOuUGzG1U9kBo3C6vF2xIHQ/5tCTl9dJpcMiKcXd0m2f/DcbziA17BlF3Q3' +
    'oq4S4qBRi6LSs403Y54jSI9X4eR7CxDhRqpAYolA6e5hXbGYER1yN/91kmLgWQhkYdxi4dK53smNVO7trXRrzskhbmuhYp1BGp3T' +
    'MrwqS5Ug8gIRcVMeEWcrawxoocTbJGugKwOXVP/cb2YS+L4o2GcZGW4B3GAHUt/RUaFrpuGYAUXW+ZUn3MVD0zMjKk/FRK48OtM+' +
    'yCT4npJLlBW26bAWo1nCsZ9acNJKjhm2kaxtgFov/wt4sc9op+/K0LPUMjE98tdRDe3BxJ8FuxQ2rLzwZx/UtbqCxPXUTHkS0SEf' +
    'psEOaTLcos6+QEcUvoHHkTyeUQax+ylilEZnhyfz3S0ifPddFREtCCJsr2ai9xY9Q76tPv32zt3DxAzR0VZxUs+i5rFqgAh53E2l' +
    'RARwW04MDfi06ssYkdijzrGGHRmPRvK4bOP9AW811bT+vadi/rlxHpC5tHMsLmDdDh0uq7VHiwn3jc/pywKObs+eOJOywb3cne21' +
    'hZ1uGJkKfXkX5BYXHQ+rVAYyigGTwg63E8nvbNCfq5VzFa9yGOEvLJ9iISd5aB+7F2xe/BWwNv28cvVpJ89mgjbvJb4LPbUCl5al' +
    '6R8tvv3YFBc3nHtrWMlWlQUQHMj6F8K7TJ2Mi8oWgpV3SDZ7TjBTkFbTFQ3WkAndci+Id0hb8HTZsI/rqfC6nKX+ufSeqgnWAf0Q' +
    'PL6czRDXekF4W0TiBIN1x/hk3mtXr+dc+0IZ5Dy/siKgtTm8BE4VRcu50WUlnVndZJdbkmZp/iepnZuWCFGrCPi6VyCjr36RuEPH' +
    'LRkexdzAzbgQNxqMz5nZKm71L8Voq9BAyc/C10fVTI1VgPCSsGnz4GagdpFsYvyxh4ymfK+aPvD9mq/v7jCBFTsMyZprR1EY7pSF' +
    'bhQ667ih27iDdjArm5RwjC31jfbwjAAztpILiTSUsVpsK+QnSVCVx4ty8TJc0SjOyKDykBsSrYn0Cz2splSAl0potCXKkz8qOxxT' +
    'gGUNWNvdrGlb2FEsE5XBUi54I+qQFBjxFVeSoUA12AVftJroq0QQGBoesBQSOKg6kS1I44KyTyDtDDPUQz7pJl4dijN3djZ/abGR' +
    'VspeCXbIBhOtXmWDSuR4JsuibYJeiOVP9HSqHyKO/XTaXE0EcEoRvN/0FX7oOl/cSBi1XM7GliPfGFfbRuQ69J0PrsgiTCM+N8Kn' +
    'gVuwWnbVSh6XyVcTIEXRmdpiCgHs2/zZ1lCzV5hLt+z43kybddc1CLUW2Fj73viE2d6wcVoPFwdv3gJTf3xzWI+4Vx19myj6YnZ4' +
    'JA==',
);

/** bzip2 -9. */
export const bzip2Text = decode(
  'QlpoOTFBWSZTWdBuNF4AAOd//+v0nK3Lo2Gf3VmkuS/vv/DrCe4Dlc/q5gw+bJfvx35lUASe8MBoFKEUganoEEmSapkbUBpoAHoR' +
    'poGmQNNBmo0aDTQaDQNGQYAhtBGaNRtI8SINNDEZMCNME0xGCNNBpgExMBBgmIGBGQGIYRgTJgAAmBBpoYjJgRpgmmIwRpoNMAmJ' +
    'gIMExAwIyAxDCMCZMAAEwDU9qqk0MIyaaYmTRo0xMAINGEGjTIxGRgAAJiNMEYgGJk000aMEBFKaEm1NRtQaDQAAAGgAPUAAAAAA' +
    'AAAAAAAGhpTpS5io1Omu1RKdgiDRr7YoCnWle2iCmmKAggnECaaBjbg2NqDTQNAnBgwbQKDYgICaTINA2JsYJogIYNtiEJuCCDYC' +
    'GmCEAMBDQmDA4hERAmJjTIMbExhAYkJiacBJtg2NpCiBJIiIhkk0jhuLb0vVp0euutmTeiMhr81OM4Hk6CUqlR3ita54F4KHBXCq' +
    'dDaov0PVuSfENTM/xNpTJJQhJAlk5OqRQb3xv+CrbhTXLKBqg3Tso4DrsInGLqel4NK7eqHgthVn2BxrHFZW+VcCMZ6B6m+3tcHG' +
    'FM9UxI1w4a0IxzKS4hVpEk0MkARChBKElKIVaA5oIZyxEQghI5SK7wjcxqFin45LVpUEp7CrV1qh/eyM6c1si59bg3VdVu9u3QjF' +
    'ttK5huMLHM5adg4xrd/XfXazkavVHjzzYeugjRRczyi/sE800riUoiieYtICBZo28+WuJgtuYW2zRSK7+9amecgbeMomiG5KpHzx' +
    '0X46zEyPjdKYi+6dA45pcwWPBIjboMFRxlNRnNDGsvnspSkBIyEhITnu6cQz+2aend02a2SgwM4xLoUQIrrvis0G5mixbIrNIpg+' +
    'W9aTBK+5xbUsIJIn6qPjKIQ4RUgSkBIqaneQnI9S9c48EgWPItdNOtF4xcZa26XP3bW/6u6a5UtCS7NDyspRN31KKwyVT2aOxBIT' +
    '6c1bZKWbQr5663ip1iL9eOYCJzZieCSkDAEJPCDvQQYLEIBSAACREhqp5V/55VqibzQkfsjr0cuA9qaK8AwdjWmKnMtw73dOW9v7' +
    'ZItaFDICgK/ffaIj3UU1EY58Q2Gf0rv8PCgsUlb52KJRdAHkTKAIQpBCEKQA2YAlLK50pSAlHTO24GswnKsX891EJoqJxo5XZBS8' +
    '0otiJde6imdj1Z0/lpgtm51MR1EnBut1rf7WBpT51K/om91exlKQEq4O3Rag1Ek7X49GmE/go11EemkgTEdd9VJmkVFLgkdjW6dN' +
    'KlSvb1wJ2d636hfCoiy9emhHXvikOp7jaIsiNGJTnskfMIiXigNoK8IJPAo2bwFS/WlQcBAKE6IMIWKyImNBBr0GdBEhCBhSBIRL' +
    'tESABsxVVNyZSs1fyxyqqxVT+ZSrlvQIqnUSHwfTpuFfDSRRcCcHNbk7EXUptNOtsy09fjfwGxExKAt4mvpFU0VqJ8lNTKJp7pQG' +
    '9BUsIg4jLogwopWVBxIIPFBUvle9QRokiDYmTHejNjmgd4xF0ClwTN5hQpZmCgmIUlXM3ZICQHmVZy8BnCoQWQguwYkw01ebmbEo' +
    '6vN3yTWn/i7kinChIaDcaLw=',
);

/** bzip2 -1 of 256,000 bytes whose byte i is 5 * (i % 50): three blocks. */
export const bzip2Pattern = decode(
  'QlpoMTFBWSZTWekSCw4AA+f//8IQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIAMAGQADGQyGg0GjQBoAGhgmqqhiGmmgAZ' +
    'MQNA0DQxkMhoNBo0AaABoZtCg1btUg3qpBgqkGGqQYqpBv1SDgqkHDVIMdUg4qpBkqkHHVIMtUg5KpBy1SDmqkHPVIOiqQdNUg6q' +
    'pB11SDsqkHbVIO6qQZqpBnqkHfVINFUg01SDVVINIUHgFB4hQeQUHmFB6BQawoPUKD2Cg9woPgKD5Cg2BQfQUH2FB+BQfoUH8FBt' +
    'Cg/zFBWSZTWS3PYhgAeQ7//8IQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIAMAGQADGQyGg0GjQBoAGhgmqqhkBoGjTTEx' +
    'AAGjQxkMhoNBo0AaABoZtqkG5VIN2qQb1UgwVSDDVIN+qQcFUg4apBxVSDjqkHJVIMQUHKFBzBQc4UHQFB0hQYwoOoKDrCgyBQdg' +
    'UGUKDtCgzBQZwoNAUHcFBpCg1BQY9YUHfVIPCqQeNUg8qpB51SD0qkHrVIPaqQe9Ug+KpB81SD6qkH3VIPyqQbKpB+1SD+qkG2qQ' +
    'f5igrJMprNVyZrKADSA//+EIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEIQhCEAGADMAAxkMhoNBo0AaABoYYyGQ0Gg0aANAA0M' +
    'ClVQxBk0BppiaAADRptBQ3AUN0FDeBQwAoYQUMQKG+ChwAocIKHEChjBQx5AUOOChlgockFDlgoc0FDngodEFDpgoZoKHVBQzwUO' +
    'uChogoaYKGqCh2QUNcFDtgod0FDvgoeEFDxgoeUFDzgoekFD1goe0FD3gofEFD5gofUFD7gofkFDZBQ/YKH9BQ2wUP8XckU4UJBV' +
    'MiVu',
);

/** bzip2 of runs around the four bytes after which a count stands. */
export const bzip2Runs = decode(
  'QlpoOTFBWSZTWc4xnhwAAAXRAMJAACA8AAAIIAAxBkxAyA9QYiEy9t8Sx9Pi7kinChIZxjPDgA==',
);
