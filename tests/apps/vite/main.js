document.querySelector("main").textContent = "Hello from Vite";
